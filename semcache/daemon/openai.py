"""OpenAI's routes: /v1/chat/completions and /v1/models, plain and streaming."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from semcache.config import Config
from semcache.daemon import bodies
from semcache.daemon.auth import canonical_user, principal
from semcache.daemon.http import (
    cache_headers,
    error_body,
    gather,
    head,
    sse,
    until_done_or_gone,
)
from semcache.daemon.live import Live
from semcache.daemon.loop import EngineLoop
from semcache.daemon.receipts import ask_receipt, cache_receipt, usage
from semcache.daemon.request import End, Matched, RequestState, Token
from semcache.daemon.request import Request as Asked
from semcache.daemon.service import Service
from semcache.errors import NotFoundError


def routes(*, config: Config, service: Service, engine: EngineLoop) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(http: Request) -> Response:
        body = bodies.parse(bodies.ChatBody, await http.body())
        user = canonical_user(principal(http.scope["state"]), body.user)
        ask = body.ask(config, user, http.headers.get("cache-control"))
        live = await service.start(ask)
        if body.stream:
            await head(live)
            return StreamingResponse(
                _chunks(service, live), media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", **cache_headers(live.request)},
            )  # fmt: skip
        await until_done_or_gone(http, service, live)
        gather(live)
        return JSONResponse(_completion(live.request), headers=cache_headers(live.request))

    @router.get("/v1/models", response_model=None)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(config, engine)]}

    @router.get("/v1/models/{model_id:path}", response_model=None)
    async def model(model_id: str) -> dict[str, Any]:
        served = _model(config, engine)
        if model_id != served["id"]:
            raise NotFoundError(f"model {model_id!r} is not served; this daemon serves {served['id']!r}", param="model")
        return served

    return router


def _model(config: Config, engine: EngineLoop) -> dict[str, Any]:
    name = engine.served.info.name if engine.served is not None else config.model.name
    return {"id": name, "object": "model", "created": 0, "owned_by": "semcache"}


def _completion(request: Asked) -> dict[str, Any]:
    return {
        "id": request.id,
        "object": "chat.completion",
        "created": int(request.created_at),
        "model": request.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": request.answer},
                "logprobs": None,
                "finish_reason": request.finish_reason,
            }
        ],
        "usage": usage(request),
        "semcache": ask_receipt(request),
    }


def _chunk(request: Asked, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return sse(
        json.dumps(
            {
                "id": request.id,
                "object": "chat.completion.chunk",
                "created": int(request.created_at),
                "model": request.model,
                "choices": [choice],
                "usage": None,
                **more,
            },
            ensure_ascii=False,
        )
    )


async def _chunks(service: Service, live: Live) -> AsyncIterator[bytes]:
    """Role, text as it becomes final, finish reason, usage with the receipt, [DONE]. Closing it cancels the request."""
    request = live.request
    try:
        async for event in live.events():
            if isinstance(event, Matched):
                known = {"cache": cache_receipt(event.receipt)}
                yield _chunk(request, {"role": "assistant", "content": ""}, semcache=known)
            elif isinstance(event, Token) and event.text:
                yield _chunk(request, {"content": event.text})
            elif isinstance(event, End) and event.state is RequestState.FINISHED:
                yield _chunk(request, {}, request.finish_reason)
                yield _last_chunk(request)
            elif isinstance(event, End):
                yield sse(json.dumps(error_body(event.error), ensure_ascii=False))
        yield sse("[DONE]")
    finally:
        service.cancel(live)


def _last_chunk(request: Asked) -> bytes:
    body: dict[str, Any] = {
        "id": request.id,
        "object": "chat.completion.chunk",
        "created": int(request.created_at),
        "model": request.model,
        "choices": [],
        "usage": usage(request),
        "semcache": ask_receipt(request),
    }
    return sse(json.dumps(body, ensure_ascii=False))
