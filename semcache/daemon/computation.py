"""What no stored answer serves: KV loaded as there is room for it, computed by the engine, written back.

Takes a request from the end of its look-up to the engine, and from there to the store. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace

from semcache.daemon.aftermath import Aftermath
from semcache.daemon.asked import donor_of
from semcache.daemon.cache.admit import Admission, PromptKV, may_store, wants_storing
from semcache.daemon.cache.lessons import Lessons
from semcache.daemon.cache.lookup import Lookup, Match, ModelKey
from semcache.daemon.cache.strategy import Access
from semcache.daemon.flights import Flight, Flights
from semcache.daemon.headroom import Headroom, Hold
from semcache.daemon.journal import Journal
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import Donor, Request, RequestState
from semcache.daemon.served import Served
from semcache.daemon.turns import Turns
from semcache.errors import BusyError
from semcache.store.tensors import KVSpan

log = logging.getLogger("semcache.service")

_LOGIT_BYTES = 4


@dataclass(frozen=True)
class Terms:
    """What a request is answered under: the served model, what that stores things by, and the scopes it may use."""

    served: Served
    model: ModelKey
    granted: Access


class Computations:
    """Requests on their way to the engine and back; at most `max_queue` wait for it."""

    def __init__(
        self, *, max_queue: int, headroom: Headroom, engine: EngineLoop, lookup: Lookup, admission: Admission,
        lessons: Lessons, turns: Turns, journal: Journal, flights: Flights, aftermath: Aftermath, pool: Executor,
    ) -> None:  # fmt: skip
        self._max_queue = max_queue
        self._headroom = headroom
        self._engine = engine
        self._lookup = lookup
        self._admission = admission
        self._lessons = lessons
        self._turns = turns
        self._journal = journal
        self._flights = flights
        self._aftermath = aftermath
        self._pool = pool
        self._num_loading = 0

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot, or for their KV."""
        return self._num_loading + self._engine.num_waiting

    async def run(self, request: Request, match: Match, terms: Terms, flight: Flight | None) -> None:
        """Until the request ended and everything is written. BusyError, before any KV is read: too many wait."""
        hold = await self._load(request, match, terms)
        try:
            match.give_kv(request)
            self._seek_donors(request, terms)
            stores = wants_storing(request) and bool(terms.granted.write)
            request.match(replace(match.receipt, stored=stores))
        except BaseException:
            hold.give_back()  # the engine, which lets go of it otherwise, never hears of the request
            raise
        needs = {"slot", "reads", "arrival"} if request.is_arriving else {"slot"}
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def done_with(*done: str) -> None:
            needs.difference_update(done)
            if not needs:
                hold.give_back()

        def hand_over(done: Request, kv: PromptKV | None) -> None:
            loop.call_soon_threadsafe(done_with, "slot", "arrival")
            loop.call_soon_threadsafe(self._after, done, kv, match, terms, flight, ended)

        request.on_slot = lambda: loop.call_soon_threadsafe(done_with, "slot")
        # What is read lies with the engine until it is copied, which may take longer than reading it.
        request.on_arrived = lambda: loop.call_soon_threadsafe(done_with, "arrival")
        self._aftermath.add(ended, request)
        if flight is not None:
            flight.is_computing = True  # cleared by `_after`, whatever becomes of this coroutine
        request.state = RequestState.WAITING  # from here on it belongs to the engine thread
        self._engine.submit(request, hand_over, terms.served)
        if match.arriving is not None:
            bringing = loop.run_in_executor(self._pool, self._bring, request, match.arriving)
            bringing.add_done_callback(lambda _done: done_with("reads"))
        await asyncio.shield(ended)

    async def _load(self, request: Request, match: Match, terms: Terms) -> Hold:
        """Complete `match` with KV and the request with donors, once there is room for it, and hold that room."""
        if self.num_waiting >= self._max_queue:
            raise BusyError(
                f"{self.num_waiting} requests are waiting (daemon.max_queue); try again shortly", retry_after_s=1
            )
        info, num_bytes = terms.served.info, 0
        if self._lookup.may_read(request, terms.granted):  # else nothing was found to draft from either
            num_bytes = request.num_prompt_tokens * info.kv_bytes_per_token + info.vocab_size * _LOGIT_BYTES
        self._num_loading += 1
        try:
            hold = await self._headroom.take(request.user, num_bytes)
            if num_bytes:
                await self._fill(hold, request, match, terms)
        finally:
            self._num_loading -= 1
        if match.arriving is None:
            num_logits = 0 if match.prompt_logits is None else info.vocab_size
            hold.shrink(sum(span.size_bytes for span in match.spans) + num_logits * _LOGIT_BYTES)
        return hold

    async def _fill(self, hold: Hold, request: Request, match: Match, terms: Terms) -> None:
        loop = asyncio.get_running_loop()

        def load() -> list[Donor]:
            # Here and not on the event loop: somebody's long prompt may keep the tokenizer busy.
            donors = [donor_of(found, terms.served, time.time()) for found in match.donors]
            self._lookup.find_prefix(request, terms.granted, terms.model, match, may_arrive_late=True)
            return donors

        loading = self._pool.submit(load)
        try:
            donors = await asyncio.wrap_future(loading)
        except BaseException:
            # Who is cancelled here does not stop the pool: what it reads takes memory until it is done.
            loading.add_done_callback(lambda _done: loop.call_soon_threadsafe(hold.give_back))
            raise
        request.times.lookup_ms = match.lookup_ms
        request.donor, request.more_donors = next(iter(donors), None), tuple(donors[1:])

    def _bring(self, request: Request, arriving: Generator[KVSpan, None, None]) -> None:
        """Read what the engine waits for, on a pool thread, for as long as anybody wants it."""
        try:
            with closing(arriving):
                for span in arriving:
                    if request.state.is_terminal:
                        break
                    self._engine.bring(request, span)
        finally:
            self._engine.bring(request, None)

    def _seek_donors(self, request: Request, terms: Terms) -> None:
        """Once the answer has begun: further donors, which began alike, looked up beside the engine."""

        def look_up(tokens: Sequence[int]) -> None:
            self._engine.offer(request, self._lookup.openings(tokens, terms.granted, terms.model))

        def seek(tokens: Sequence[int]) -> None:
            with contextlib.suppress(RuntimeError):  # the pool is closed: the daemon is going down
                self._pool.submit(look_up, tokens)

        request.seek_donors = seek

    def _after(
        self, request: Request, kv: PromptKV | None, match: Match, terms: Terms, flight: Flight | None,
        ended: asyncio.Future[None],
    ) -> None:  # fmt: skip
        """The engine is done with it: let followers go, then write everything back off the hot path."""
        granted, model = terms.granted, terms.model
        replayable = self._lookup.may_replay(request) and bool(granted.write)
        stores_answer = may_store(request, replayable=replayable)
        compute_ms = _computed_ms(request)
        if flight is not None and not stores_answer:
            self._flights.clear(flight)
        elif flight is not None:
            scope = granted.write[0]
            flight.land(self._admission.entry_of(request, match.identity, model, scope, None, compute_ms))

        def write() -> None:
            self._lessons.computed(request, match)
            if stores_answer:
                self._admission.store_answer(request, granted, match.identity, model, match.vector, compute_ms)
            if kv is not None:
                self._admission.store_kv(request, granted, model, kv)
                self._turns.note(request, granted, terms.served)

        writing = asyncio.get_running_loop().run_in_executor(self._pool, write)

        def written(done: asyncio.Future[None]) -> None:
            if done.exception() is not None:
                log.error("storing request %s failed: %s", request.id, done.exception())
            if flight is not None:
                self._flights.clear(flight)
            request.restored, request.prompt_logits = [], None  # the journal keeps the request, not its tensors
            ended.set_result(None)

        writing.add_done_callback(written)
        rate = kv.prefill_ms_per_token if kv is not None else 0.0
        self._aftermath.run(request, self._journal.record, request, rate * request.num_cached_tokens)


def _computed_ms(request: Request) -> float:
    times = request.times
    return (times.ended - times.prefill_started) * 1e3 if times.ended and times.prefill_started else 0.0
