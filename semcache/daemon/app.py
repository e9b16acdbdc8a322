"""The HTTP application: puts the routers together and maps errors to responses, once."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semcache import __version__
from semcache.daemon.http import error_body, status_of
from semcache.errors import NotFoundError, SemcacheError, UsageError
from semcache.wire.protocol import PROTOCOL


def create_app(routers: Sequence[APIRouter]) -> FastAPI:
    app = FastAPI(
        title="semcache", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        # No phoning home, whatever the environment says.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )  # fmt: skip
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(SemcacheError, _on_semcache_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(_Versioned)
    return app


class _Versioned:
    """Adds our version headers to every response, so the CLI sees a skew on its first call."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [
            (b"x-semcache-version", __version__.encode()),
            (b"x-semcache-protocol", str(PROTOCOL).encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_versioned(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        await self._app(scope, receive, send_versioned)


def _response(error: SemcacheError, status: int | None = None) -> JSONResponse:
    status = status or status_of(error)
    retry = {"Retry-After": str(max(1, round(error.retry_after_s or 1)))} if status in (429, 503) else {}
    return JSONResponse(error_body(error, status), status_code=status, headers=retry)


async def _on_semcache_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SemcacheError)
    return _response(error)


async def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = str(first["loc"][-1])
    return _response(UsageError(f"{where} = {first.get('input')!r}: {first['msg']}", param=where))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path} is not a route of this server"
    return _response(NotFoundError(message) if error.status_code == 404 else UsageError(message), error.status_code)
