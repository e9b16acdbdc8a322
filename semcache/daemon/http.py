"""What all routes share: error bodies, cache headers, event streams, and noticing that the client went away."""

from __future__ import annotations

import asyncio

from fastapi import Request as HttpRequest
from fastapi.sse import format_sse_event

from semcache.daemon.live import Live
from semcache.daemon.request import End, Request, RequestState
from semcache.daemon.service import Service
from semcache.errors import (
    AuthError,
    BusyError,
    CachedOnlyMissError,
    EngineError,
    ForbiddenError,
    ModelLoadError,
    NotFoundError,
    PinLimitError,
    RequestTimeoutError,
    SemcacheError,
    UnavailableError,
    UsageError,
)
from semcache.wire.protocol import ErrorBody

# Walked by class order of the raised error, so a new leaf needs no new row.
STATUS: dict[type[SemcacheError], int] = {
    UsageError: 400,
    AuthError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    PinLimitError: 409,
    BusyError: 429,
    UnavailableError: 503,
    ModelLoadError: 503,
    RequestTimeoutError: 504,
    CachedOnlyMissError: 504,
    SemcacheError: 500,
}
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {409: "conflict_error"}
_TYPES |= {422: "invalid_request_error", 429: "rate_limit_error", 503: "unavailable_error", 504: "timeout_error"}


def status_of(error: SemcacheError) -> int:
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_body(error: SemcacheError | None, status: int | None = None) -> dict[str, ErrorBody]:
    """OpenAI's error object; None is a request that was cancelled."""
    shown = error or EngineError("the request was cancelled")
    kind = _TYPES.get(status or status_of(shown), "api_error")
    return {"error": {"message": shown.message, "type": kind, "param": shown.param, "code": shown.code}}


def sse(data: str, event: str | None = None) -> bytes:
    return format_sse_event(data_str=data, event=event)


def cache_headers(request: Request) -> dict[str, str]:
    """What is known at the first byte."""
    receipt, times = request.receipt, request.times
    if receipt is None:
        return {}
    headers = {
        "X-Semcache-Outcome": receipt.outcome.value,
        "X-Semcache-Reused-Tokens": str(request.num_cached_tokens),
        "X-Request-Id": request.id,
    }
    if receipt.score is not None:
        headers["X-Semcache-Score"] = f"{receipt.score:.4f}"
    if receipt.entry_id is not None:
        headers["X-Semcache-Entry"] = receipt.entry_id
    spans = [("embed", times.embed_ms), ("lookup", times.lookup_ms)]
    headers["Server-Timing"] = ", ".join(f"{name};dur={ms:.2f}" for name, ms in spans if ms is not None)
    return headers


async def head(live: Live) -> None:
    """Wait until the look-up is done, so that headers can tell its result; an early failure is raised as itself."""
    await live.head()
    if live.request.state is RequestState.FAILED and live.request.receipt is None and live.request.error is not None:
        raise live.request.error.bare()


async def until_done_or_gone(http: HttpRequest, service: Service, live: Live) -> None:
    """Wait for the End; a client that disconnects before it cancels the work."""
    done = asyncio.ensure_future(_drain(live))
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not done.done():
            service.cancel(live)
            await done


def gather(live: Live) -> None:
    """Raise what ended the request, unless it finished."""
    request = live.request
    if request.state is not RequestState.FINISHED:
        raise request.error.bare() if request.error is not None else EngineError("the request was cancelled")


async def _drain(live: Live) -> None:
    async for event in live.events():
        if isinstance(event, End):
            return


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
