"""Our own routes: status, statistics, requests, events, entries, check, models, shutdown. Looking changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from semcache.daemon import bodies
from semcache.daemon.auth import canonical_user, principal
from semcache.daemon.cache.strategy import principal_of
from semcache.daemon.http import error_body, sse, status_of
from semcache.daemon.journal import Journal
from semcache.daemon.library import Library
from semcache.daemon.loop import EngineLoop
from semcache.daemon.overview import EmbedderSlot, Overview
from semcache.daemon.service import Service
from semcache.daemon.trust import Trust
from semcache.errors import UnavailableError, UsageError
from semcache.wire.entries import CheckReport, Cleared, EntryDetail, PinResult
from semcache.wire.status import ModelStatus, Stats, Status


def routes(
    *,
    overview: Overview,
    library: Library,
    journal: Journal,
    engine: EngineLoop,
    service: Service,
    trust: Trust,
    embedder: EmbedderSlot,
    pool: Executor,
    shut_down: Callable[[float], None],
) -> APIRouter:
    router = APIRouter()

    async def in_pool(work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    @router.get("/health", response_model=None)
    async def health() -> JSONResponse:
        if not engine.is_alive:
            return JSONResponse({"status": "failed", "state": overview.state}, status_code=500)
        return JSONResponse({"status": "ok", "state": overview.state})

    @router.get("/ready", response_model=None)
    async def ready(wait_s: float = 0) -> JSONResponse:
        await overview.until_settled(min(max(wait_s, 0), 60))
        problem = overview.not_ready()
        if problem is not None:
            status = status_of(problem)
            retry = {"Retry-After": "1"} if isinstance(problem, UnavailableError) else {}
            return JSONResponse(error_body(problem), status_code=status, headers=retry)
        return JSONResponse({"status": "ready"})

    @router.get("/v1/semcache/status", response_model=None)
    async def status() -> Status:
        return await in_pool(overview.status)  # type: ignore[no-any-return]

    @router.get("/v1/semcache/stats", response_model=None)
    async def stats(http: Request) -> Stats:
        return await in_pool(library.stats, principal(http.scope["state"]))  # type: ignore[no-any-return]

    @router.get("/v1/semcache/requests", response_model=None)
    async def requests(http: Request, limit: int = 50) -> dict[str, Any]:
        caller = principal(http.scope["state"])
        return {"requests": await journal.recent(_limit(limit), caller, pool)}

    @router.get("/v1/semcache/events", response_model=None)
    async def events(http: Request) -> StreamingResponse:
        caller = principal(http.scope["state"])
        return StreamingResponse(_events(journal, caller), media_type="text/event-stream")

    @router.get("/v1/semcache/entries", response_model=None)
    async def entries(
        http: Request, limit: int = 50, sort: str = "used", match: str | None = None, user: str | None = None,
        near: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        caller = principal(http.scope["state"])
        whose = canonical_user(caller, user) if user is not None else None
        if near is not None:
            await service.settled()
            return {"entries": await in_pool(trust.near, whose or caller, near, _limit(limit), embedder.get())}
        rows = await in_pool(library.entries, caller, whose, _limit(limit), sort, match)
        return {"entries": rows}

    @router.get("/v1/semcache/entries/{entry_id}", response_model=None)
    async def entry(http: Request, entry_id: str) -> EntryDetail:
        return await in_pool(library.entry, principal(http.scope["state"]), entry_id)  # type: ignore[no-any-return]

    @router.delete("/v1/semcache/entries/{entry_id}", response_model=None)
    async def remove(http: Request, entry_id: str) -> dict[str, int]:
        await service.settled()  # what was answered before this call leaves nothing behind that is still to be queued
        await in_pool(library.remove, principal(http.scope["state"]), entry_id)
        return {"removed": 1}

    @router.put("/v1/semcache/entries/{entry_id}/pin", response_model=None)
    async def pin(http: Request, entry_id: str) -> PinResult:
        await service.settled()  # the KV of what was just answered counts
        caller = principal(http.scope["state"])
        return await in_pool(partial(library.pin, caller, entry_id, pinned=True))  # type: ignore[no-any-return]

    @router.delete("/v1/semcache/entries/{entry_id}/pin", response_model=None)
    async def unpin(http: Request, entry_id: str) -> PinResult:
        caller = principal(http.scope["state"])
        return await in_pool(partial(library.pin, caller, entry_id, pinned=False))  # type: ignore[no-any-return]

    @router.post("/v1/semcache/clear", response_model=None)
    async def clear(http: Request) -> Cleared:
        body = bodies.parse(bodies.ClearBody, await http.body())
        caller = principal(http.scope["state"])
        whose = canonical_user(caller, body.user) if body.user is not None else None
        await service.settled()  # what was answered before this call is removed too
        clear = partial(library.clear, caller, whose, body.namespace, keep_pinned=not body.all)
        return await in_pool(clear)  # type: ignore[no-any-return]

    @router.post("/v1/semcache/check", response_model=None)
    async def check(http: Request) -> CheckReport:
        body = bodies.parse(bodies.CheckBody, await http.body())
        await service.settled()
        return await in_pool(library.check, body.fix)  # type: ignore[no-any-return]

    @router.get("/v1/semcache/models", response_model=None)
    async def models() -> dict[str, Any]:
        return {"models": [overview.model()]}

    @router.post("/v1/semcache/models/load", response_model=None)
    async def load() -> ModelStatus:
        engine.load()
        await overview.until_settled(600)
        return overview.model()

    @router.post("/v1/semcache/models/unload", response_model=None)
    async def unload() -> ModelStatus:
        engine.unload()
        await overview.until(lambda: engine.model.state != "ready", 60)
        return overview.model()

    @router.post("/v1/semcache/shutdown", response_model=None)
    async def shutdown(http: Request) -> dict[str, str]:
        body = bodies.parse(bodies.ShutdownBody, await http.body())
        shut_down(body.timeout_s)
        return {"status": "draining"}

    return router


def _limit(limit: int) -> int:
    if not 1 <= limit <= 10_000:
        raise UsageError(f"limit = {limit}: must be between 1 and 10000", param="limit")
    return limit


async def _events(journal: Journal, caller: str) -> AsyncIterator[bytes]:
    """Events of the caller's own requests and entries, and of the model."""
    yield b": connected\n\n"
    async for event in journal.events():
        if event is None:
            return
        kind, data = event
        if "user" not in data or principal_of(data["user"]) == caller:
            yield sse(json.dumps(data, ensure_ascii=False), event=kind)
