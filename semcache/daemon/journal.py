"""Who asked what and what it saved: the newest requests in memory, all of them in the store, and live events.

Observation only: nothing here wakes the model or resets a timer.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, cast

from semcache.daemon.receipts import ask_receipt, kept_receipt
from semcache.daemon.request import Outcome, Receipt, Request
from semcache.store.store import Store
from semcache.store.usage import UsageRecord
from semcache.wire.protocol import EventKind
from semcache.wire.receipts import AskReceipt
from semcache.wire.status import LatencyStatus

_MAX_LATENCIES = 1024
_MAX_RECENT = 500
# A reader that is slower than this many events loses the oldest: watching must not hold the daemon's memory.
_MAX_PENDING_EVENTS = 1000


class Journal:
    """Written from the event loop (`opened`, `changed`) and from the pool (`record`, `forget_matches`)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: OrderedDict[str, Request] = OrderedDict()
        self._readers: set[asyncio.Queue[tuple[str, Any] | None]] = set()
        self.outcomes: Counter[str] = Counter()
        self._ttft: dict[str, deque[float]] = {}
        self._total: dict[str, deque[float]] = {}
        self.last_activity_s: float | None = None

    def opened(self, request: Request) -> None:
        self._recent[request.id] = request
        while len(self._recent) > _MAX_RECENT:
            oldest = next(iter(self._recent))
            if not self._recent[oldest].state.is_terminal:
                break
            del self._recent[oldest]
        self.changed(request)

    def changed(self, request: Request) -> None:
        if self._readers:
            self.tell("request", ask_receipt(request))

    def tell(self, kind: EventKind, data: Any) -> None:
        """Hand one event to every reader."""
        for reader in self._readers:
            if reader.qsize() >= _MAX_PENDING_EVENTS:
                reader.get_nowait()
            reader.put_nowait((kind, data))

    async def events(self) -> AsyncIterator[tuple[str, Any] | None]:
        """Events from now on; ends with None when the daemon drains."""
        reader: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        self._readers.add(reader)
        try:
            while (event := await reader.get()) is not None:
                yield event
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        for reader in self._readers:
            reader.put_nowait(None)

    def request(self, request_id: str) -> Request | None:
        """A request that this process still remembers."""
        return self._recent.get(request_id)

    def forget_matches(self) -> None:
        """Let what has ended tell no more of stored answers that are gone; on a pool thread."""
        ended = [request for request in list(self._recent.values()) if request.state.is_terminal]
        told = {request.receipt.entry_id for request in ended if request.receipt is not None}
        told |= {item.candidate.entry_id for request in ended for item in request.considered}
        gone = {entry_id for entry_id in told if entry_id is not None and self._store.get_entry(entry_id) is None}
        for request in ended:
            if request.receipt is not None and request.receipt.entry_id in gone:
                request.receipt = replace(request.receipt, matched_prompt=None)
            request.considered = tuple(item for item in request.considered if item.candidate.entry_id not in gone)

    async def recent(self, limit: int, principal: str, pool: Executor) -> list[AskReceipt]:
        """Newest first: what this process remembers, then what the store kept of older ones but for damaged rows."""
        mine = [r for r in reversed(self._recent.values()) if _belongs(r.user, principal)]
        receipts = [ask_receipt(request) for request in mine[:limit]]
        if len(receipts) < limit:
            known = {receipt["id"] for receipt in receipts}
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(pool, self._store.recent_requests, limit, principal)
            older = [row.receipt for row in rows if row.id not in known and row.receipt.get("id") == row.id]
            receipts += cast("list[AskReceipt]", older)
        return receipts[:limit]

    def record(self, request: Request, saved_ms: float) -> None:
        """Account a finished request; on a pool thread."""
        receipt = request.receipt or Receipt(Outcome.MISS, "ended_early", request.options.strategy)
        body = kept_receipt(request)
        times = request.times
        total_ms = (times.ended - times.submitted) * 1e3 if times.ended is not None else None
        if request.error is None and total_ms is not None:
            self.outcomes[receipt.outcome.value] += 1
            ttft_ms = (times.first_token - times.submitted) * 1e3 if times.first_token is not None else total_ms
            for name in (receipt.outcome.value, "all"):
                self._ttft.setdefault(name, deque(maxlen=_MAX_LATENCIES)).append(ttft_ms)
                self._total.setdefault(name, deque(maxlen=_MAX_LATENCIES)).append(total_ms)
        if receipt.outcome.is_answer_hit and total_ms is not None:
            saved_ms = max(0.0, saved_ms - total_ms)
        self._store.record_request(
            UsageRecord(
                id=request.id, at=request.created_at, user=request.user, model=request.model,
                outcome=receipt.outcome.value if request.error is None else None, reason=receipt.reason,
                strategy=receipt.strategy, scope=receipt.scope,
                state=request.state.value, error=request.error.code if request.error is not None else None,
                prompt=body["prompt"], answer=body["answer"], receipt=dict(body),
                prompt_tokens=request.num_prompt_tokens, cached_tokens=request.num_cached_tokens,
                completion_tokens=len(request.output_tokens), drafted_tokens=receipt.draft_tokens,
                accepted_tokens=receipt.draft_accepted, saved_ms=saved_ms,
            )
        )  # fmt: skip

    def latency(self) -> dict[str, LatencyStatus]:
        return {
            name: {
                "n": len(ttft),
                "ttft_p50": percentile(list(ttft), 50),
                "ttft_p95": percentile(list(ttft), 95),
                "total_p50": percentile(list(self._total[name]), 50),
                "total_p95": percentile(list(self._total[name]), 95),
            }
            for name, ttft in list(self._ttft.items())
        }


def _belongs(user: str, principal: str) -> bool:
    return user == principal or user.startswith(f"{principal}/")


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest rank; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(0, min(len(ordered) - 1, round(percent / 100 * len(ordered) + 0.5) - 1))
    return round(ordered[rank], 3)
