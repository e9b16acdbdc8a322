"""TGI-style generation: POST /generate. Bad values are 422 here, as TGI's clients expect."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from semcache.config import Config
from semcache.daemon import bodies
from semcache.daemon.auth import canonical_user, principal
from semcache.daemon.http import cache_headers, error_body, gather, head, sse, until_done_or_gone
from semcache.daemon.live import Live
from semcache.daemon.receipts import ask_receipt
from semcache.daemon.request import End, RequestState, Token
from semcache.daemon.request import Request as Asked
from semcache.daemon.service import Service
from semcache.errors import UsageError


def routes(*, config: Config, service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/generate", response_model=None)
    async def generate(http: Request) -> Response:
        try:
            live = await start(http)
        except UsageError as error:
            return JSONResponse(error_body(error, 422), status_code=422)
        await until_done_or_gone(http, service, live)
        gather(live)
        return JSONResponse(_generated(live.request), headers=cache_headers(live.request))

    @router.post("/generate_stream", response_model=None)
    async def generate_stream(http: Request) -> Response:
        try:
            live = await start(http)
        except UsageError as error:
            return JSONResponse(error_body(error, 422), status_code=422)
        await head(live)
        return StreamingResponse(
            _tokens(service, live), media_type="text/event-stream", headers=cache_headers(live.request)
        )

    async def start(http: Request) -> Live:
        body = bodies.parse(bodies.GenerateBody, await http.body())
        user = canonical_user(principal(http.scope["state"]), body.user_id)
        return await service.start(body.ask(config, user))

    return router


def _generated(request: Asked) -> dict[str, Any]:
    """`cached`, `similarity` and `source` speak of replayed answers only; `outcome` tells the whole ladder."""
    receipt = request.receipt
    assert receipt is not None
    hit = receipt.outcome.is_answer_hit
    return {
        "generated_text": request.answer,
        "cached": hit,
        "similarity": (receipt.score if receipt.score is not None else 1.0) if hit else None,
        "source": receipt.scope if hit else None,
        "outcome": receipt.outcome.value,
        "semcache": ask_receipt(request),
    }


async def _tokens(service: Service, live: Live) -> AsyncIterator[bytes]:
    request = live.request
    try:
        async for event in live.events():
            if isinstance(event, Token) and event.text:
                yield sse(json.dumps({"token": {"text": event.text}, "generated_text": None}, ensure_ascii=False))
            elif isinstance(event, End) and event.state is RequestState.FINISHED:
                last = {"token": {"text": ""}, **_generated(request)}
                yield sse(json.dumps(last, ensure_ascii=False))
            elif isinstance(event, End):
                yield sse(json.dumps(error_body(event.error), ensure_ascii=False))
    finally:
        service.cancel(live)
