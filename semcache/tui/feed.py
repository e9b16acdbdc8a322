"""The one worker: asks a source for status, statistics and requests, follows its events, and posts messages.

Looking never wakes the model. A source that goes away is asked again at every interval; nothing is ever thrown into
the app. Events are collected and posted at most ten times a second, so that a replay cannot flood the screen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, cast

from textual.message import Message

from semcache.errors import DaemonUnreachableError, SemcacheError
from semcache.wire.receipts import AskReceipt, CacheReceipt
from semcache.wire.status import ModelStatus, Stats, Status
from semcache.wire.trust import Explanation, FeedbackResult

POLL_TIMEOUT_S = 10.0
FLUSH_INTERVAL_S = 0.1
REQUESTS_LIMIT = 200
# With a live event stream the list is only a safety net against dropped events.
POLLS_PER_RELOAD = 10


class Source(Protocol):
    """What `top` needs of a daemon: `semcache.client.Client`, or fixed data."""

    async def status(self) -> Status: ...

    async def stats(self) -> Stats: ...

    async def requests(self, limit: int = 50) -> list[AskReceipt]: ...

    def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]: ...

    def ask_stream(
        self, body: Mapping[str, Any], *, cache_control: str | None = None
    ) -> AsyncIterator[CacheReceipt | str | AskReceipt]: ...

    async def explained(self, request_id: str) -> Explanation: ...

    async def feedback(self, marked_id: str, verdict: str) -> FeedbackResult: ...


class Snapshot(Message):
    """One poll. `requests` is None when the list was not asked for."""

    def __init__(self, status: Status, stats: Stats, requests: list[AskReceipt] | None) -> None:
        super().__init__()
        self.status = status
        self.stats = stats
        self.requests = requests


class RequestsChanged(Message):
    """The newest receipt of every request that moved since the last message."""

    def __init__(self, receipts: list[AskReceipt]) -> None:
        super().__init__()
        self.receipts = receipts


class ModelChanged(Message):
    def __init__(self, model: ModelStatus) -> None:
        super().__init__()
        self.model = model


class SourceLost(Message):
    """The last poll failed; the feed keeps trying."""

    def __init__(self, error: SemcacheError) -> None:
        super().__init__()
        self.error = error


class Feed:
    """Polls and follows one source until cancelled; `poll_now` cuts the current wait short."""

    def __init__(self, source: Source, post: Callable[[Message], object], *, interval_s: float) -> None:
        self._source = source
        self._post = post
        self._interval_s = interval_s
        self._due = asyncio.Event()
        self._polled = asyncio.Event()
        self._streaming = False
        self._polls_until_reload = 0
        self._pending: dict[str, AskReceipt] = {}
        self._news = asyncio.Event()

    def poll_now(self) -> None:
        self._due.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll())
            tasks.create_task(self._follow())
            tasks.create_task(self._flush())

    async def _poll(self) -> None:
        while True:
            self._due.clear()
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    snapshot = await self._snapshot()
            except SemcacheError as error:
                self._lost(error)
            except TimeoutError:
                self._lost(DaemonUnreachableError(f"the daemon did not answer within {POLL_TIMEOUT_S:g} s"))
            except Exception as error:  # noqa: BLE001 - an edge: the screen must outlive whatever a daemon answers
                self._lost(SemcacheError(f"unreadable answer of the daemon: {error!r}"))
            else:
                self._post(snapshot)
                self._polled.set()
            try:
                await asyncio.wait_for(self._due.wait(), self._interval_s)
            except TimeoutError:
                continue

    async def _snapshot(self) -> Snapshot:
        status = await self._source.status()
        stats = await self._source.stats()
        if self._streaming and self._polls_until_reload > 0:
            self._polls_until_reload -= 1
            return Snapshot(status, stats, None)
        requests = await self._source.requests(limit=REQUESTS_LIMIT)
        self._polls_until_reload = POLLS_PER_RELOAD
        return Snapshot(status, stats, requests)

    def _lost(self, error: SemcacheError) -> None:
        self._polls_until_reload = 0
        self._post(SourceLost(error))

    async def _follow(self) -> None:
        """Read events; after the stream ends, open it again when the next poll succeeds."""
        while True:
            await self._polled.wait()
            try:
                async for kind, data in self._source.events():
                    self._streaming = True
                    self._take(kind, data)
            except Exception:  # noqa: BLE001, S110 - an edge: the poll beside it says what is wrong
                pass
            self._streaming = False
            self._polled.clear()

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "request":
            self._pending[data["id"]] = cast("AskReceipt", data)
            self._news.set()
        elif kind == "model":
            self._post(ModelChanged(cast("ModelStatus", data)))

    async def _flush(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            receipts, self._pending = list(self._pending.values()), {}
            self._post(RequestsChanged(receipts))
            await asyncio.sleep(FLUSH_INTERVAL_S)
