"""Routes that say why and how sure: explain, find, feedback, audit, tune, metrics. Only feedback changes anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from semcache.config import Config
from semcache.daemon import bodies
from semcache.daemon.auth import canonical_user, principal
from semcache.daemon.metrics import render
from semcache.daemon.overview import Overview
from semcache.daemon.service import Service
from semcache.daemon.trust import Trust
from semcache.wire.trust import AuditReport, Explanation, FeedbackResult, TuneReport


def routes(*, config: Config, service: Service, trust: Trust, overview: Overview, pool: Executor) -> APIRouter:
    router = APIRouter()

    async def in_pool(work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    @router.post("/v1/semcache/explain", response_model=None)
    async def explain(http: Request) -> Explanation:
        body = bodies.parse(bodies.ExplainBody, await http.body())
        caller = principal(http.scope["state"])
        request, match = await service.preview(body.ask(config, canonical_user(caller, body.user)))
        return await in_pool(trust.explanation, request, match)  # type: ignore[no-any-return]

    @router.get("/v1/semcache/explain/{request_id}", response_model=None)
    async def explained(http: Request, request_id: str) -> Explanation:
        await service.settled()
        return await in_pool(trust.explained, principal(http.scope["state"]), request_id)  # type: ignore[no-any-return]

    @router.post("/v1/semcache/feedback", response_model=None)
    async def feedback(http: Request) -> FeedbackResult:
        body = bodies.parse(bodies.FeedbackBody, await http.body())
        await service.settled()  # the hit that is meant may not be recorded yet
        return await in_pool(trust.feedback, principal(http.scope["state"]), body.id, body.verdict)  # type: ignore[no-any-return]

    @router.get("/v1/semcache/audit", response_model=None)
    async def audit(http: Request) -> AuditReport:
        await service.settled()
        return await in_pool(trust.audits, principal(http.scope["state"]))  # type: ignore[no-any-return]

    @router.post("/v1/semcache/tune", response_model=None)
    async def tune(http: Request) -> TuneReport:
        body = bodies.parse(bodies.TuneBody, await http.body())
        await service.settled()
        return await in_pool(trust.tune, principal(http.scope["state"]), body.max_error, body.max_hit_error)  # type: ignore[no-any-return]

    @router.get("/metrics", response_model=None)
    async def metrics() -> PlainTextResponse:
        status = await in_pool(overview.status)
        return PlainTextResponse(render(status), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
