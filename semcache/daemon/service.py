"""One answer from start to end: tokenise, look up, replay or compute, write back, account.

The event loop's side of a request. Blocking work goes to the pool, forward passes to the engine thread; a request that
is in neither belongs to this file, which then also ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from semcache.config import Config
from semcache.daemon.aftermath import Aftermath
from semcache.daemon.asked import donor_of, model_key, request_of, tokenise
from semcache.daemon.cache.admit import Admission, PromptKV, may_store, wants_storing
from semcache.daemon.cache.identity import fits, identify
from semcache.daemon.cache.lessons import Lessons
from semcache.daemon.cache.lookup import Lookup, Match, ModelKey
from semcache.daemon.cache.strategy import Access, access
from semcache.daemon.flights import Flight, Flights
from semcache.daemon.idle import IdleTime
from semcache.daemon.journal import Journal
from semcache.daemon.live import Ask, Live
from semcache.daemon.loop import EngineLoop, Served
from semcache.daemon.request import (
    End,
    Event,
    Matched,
    Outcome,
    Receipt,
    Request,
    RequestState,
)
from semcache.daemon.turns import Turns
from semcache.errors import (
    BusyError,
    CachedOnlyMissError,
    EngineError,
    NotFoundError,
    RequestTimeoutError,
    SemcacheError,
    UnavailableError,
)
from semcache.store.entries import Entry

log = logging.getLogger("semcache.service")


class Service:
    """Answers requests; one for the whole daemon."""

    def __init__(
        self,
        *,
        config: Config,
        loop: EngineLoop,
        lookup: Lookup,
        admission: Admission,
        lessons: Lessons,
        turns: Turns,
        idle: IdleTime,
        journal: Journal,
        pool: Executor,
    ) -> None:
        self._config = config
        self._engine = loop
        self._lookup = lookup
        self._admission = admission
        self._lessons = lessons
        self._turns = turns
        self._idle = idle
        self._journal = journal
        self._pool = pool
        self._flights = Flights()
        self._live: set[asyncio.Task[None]] = set()
        self._aftermath = Aftermath(pool)
        self._last_asked = time.monotonic()
        self.is_draining = False

    def idle_s(self) -> float:
        """Seconds since somebody last asked something; looking does not count."""
        return 0.0 if self._live else time.monotonic() - self._last_asked

    @property
    def num_live(self) -> int:
        return len(self._live)

    # From the routes

    async def start(self, ask: Ask) -> Live:
        """Check and tokenise a request and set it going; whatever is wrong with it is raised here, before any queue."""
        served = self._require_served(ask.model)
        self._last_asked = time.monotonic()
        granted = self._access(ask)
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._pool, tokenise, served, ask)
        live = Live(loop)
        live.request = request_of(ask, tokens, served, lambda event: self._publish(live, event))
        self._journal.opened(live.request)
        live.task = asyncio.create_task(self._run(live, served, granted))
        self._live.add(live.task)
        live.task.add_done_callback(self._forget)
        self._idle.end()  # not before: only the end of a live request tells it that nothing is asked
        return live

    async def preview(self, ask: Ask) -> tuple[Request, Match]:
        """What would be done with a question now; nothing is computed, counted or stored."""
        served = self._require_served(ask.model)
        granted = self._access(ask)
        await self.settled(ask.user)
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._pool, tokenise, served, ask)
        request = request_of(ask, tokens, served, lambda _event: None)
        find = partial(self._lookup.find, request, granted, self._model_key(served), preview=True)
        return request, await loop.run_in_executor(self._pool, find)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._live.discard(task)
        self._last_asked = time.monotonic()
        if not self._live and not self.is_draining:
            self._idle.begin()

    def cancel(self, live: Live) -> None:
        """The client went away."""
        if not live.request.state.is_terminal:
            live.task.cancel()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, let the live ones finish within the time, and wait until everything is written."""
        self.is_draining = True
        await self._idle.stop()
        if self._live:
            _done, late = await asyncio.wait(set(self._live), timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=5)
        await self._aftermath.drained()

    async def settled(self, user: str | None = None) -> None:
        """Wait until what ended before now, of everybody or of one user, is written; not for what still runs."""
        await self._aftermath.settled(user)

    # One request

    async def _run(self, live: Live, served: Served, granted: Access) -> None:
        """Never raises: whatever happens becomes the End of the request."""
        request = live.request
        try:
            async with asyncio.timeout(self._config.daemon.request_timeout_s):
                await self._answer(request, served, granted)
        except asyncio.CancelledError:
            self._end_early(request, RequestState.CANCELLED, None)
        except TimeoutError:
            limit = self._config.daemon.request_timeout_s
            self._end_early(request, RequestState.FAILED, RequestTimeoutError(
                f"the request did not finish within {limit} s; raise daemon.request_timeout_s or ask for fewer tokens"
            ))  # fmt: skip
        except SemcacheError as error:
            self._end_early(request, RequestState.FAILED, error)
        except Exception as error:
            log.exception("request %s failed", request.id)
            self._end_early(
                request, RequestState.FAILED, EngineError(f"internal error: {type(error).__name__}: {error}")
            )

    def _end_early(self, request: Request, state: RequestState, error: SemcacheError | None) -> None:
        """End a request this side owns; one that the engine owns is ended there, before its next step."""
        if request.state in (RequestState.QUEUED, RequestState.MATCHING):
            request.end(state, error)
            self._account(request, saved_ms=0.0)
        elif not request.state.is_terminal:
            self._engine.cancel(request, error)

    async def _answer(self, request: Request, served: Served, granted: Access) -> None:
        model = self._model_key(served)
        request.state = RequestState.MATCHING
        shareable = self._lookup.may_replay(request) and request.options.mode.allows_exact
        if shareable and not request.options.refresh and await self._follow(request, model, granted):
            return
        # Nothing awaits between the last check for a leader and taking off, and a flight is cleared only when its
        # answer is committed: so the second of two identical requests finds either the flight or the stored answer.
        flight = self._take_off(request, model, granted) if shareable else None
        try:
            await self._look_up_and_answer(request, model, granted, flight, served)
        finally:
            if flight is not None and not flight.is_computing:
                self._flights.clear(flight)

    async def _follow(self, request: Request, model: ModelKey, granted: Access) -> bool:
        """Wait for an identical request that is being computed; True when its answer served."""
        key = identify(model.fingerprint, request).request_key
        while (leader := self._flights.leader_of([s.name for s in granted.read], key)) is not None:
            entry = await leader.wait()
            if entry is not None:
                if not fits(request.sampling, entry.finish_reason, entry.num_completion_tokens):
                    return False
                self._replay(request, _in_flight(request, entry), entry)
                return True
        return False

    def _take_off(self, request: Request, model: ModelKey, granted: Access) -> Flight | None:
        if not wants_storing(request) or not granted.write:
            return None
        key = identify(model.fingerprint, request).request_key
        return self._flights.take_off([s.name for s in granted.write], key)

    async def _look_up_and_answer(
        self, request: Request, model: ModelKey, granted: Access, flight: Flight | None, served: Served
    ) -> None:
        loop = asyncio.get_running_loop()
        if granted.read:
            await self.settled(request.user)  # who has an answer in hand finds it, also in other words
        match = await loop.run_in_executor(self._pool, self._lookup.find, request, granted, model)
        request.times.embed_ms, request.times.lookup_ms = match.embed_ms, match.lookup_ms
        request.considered = match.verdict.considered if match.verdict is not None else ()
        if match.answer is not None:
            self._replay(request, match.receipt, match.answer, match)
            if self._turns.concerns(request, granted):
                # The client has its answer; idle time must not begin before this is queued, nor a clear overtake it.
                noting = loop.run_in_executor(self._pool, self._turns.note, request, granted, served)
                self._aftermath.add(noting, request)
                await noting
        elif request.options.cached_only:
            request.match(match.receipt)
            raise CachedOnlyMissError(f"no stored answer may be served for this prompt ({match.receipt.reason})")
        elif self._engine.num_waiting >= self._config.daemon.max_queue:
            raise BusyError(
                f"{self._engine.num_waiting} requests are waiting (daemon.max_queue); try again shortly",
                retry_after_s=1,
            )
        else:
            await self._compute(request, match, model, granted, flight, served)

    def _replay(self, request: Request, receipt: Receipt, entry: Entry, match: Match | None = None) -> None:
        request.match(receipt)
        request.finish_reason = entry.finish_reason
        request.emit(entry.answer_tokens, entry.answer)
        request.end(RequestState.FINISHED)
        self._account(request, saved_ms=entry.compute_ms)
        if match is not None and match.verdict is not None:
            self._aftermath.run(request, self._lessons.served, request, match)

    async def _compute(
        self, request: Request, match: Match, model: ModelKey, granted: Access, flight: Flight | None, served: Served
    ) -> None:
        request.restored, request.num_restored = match.spans, match.num_restored
        request.prompt_logits = match.prompt_logits
        self._give_donors(request, match, model, granted, served)
        stores = wants_storing(request) and bool(granted.write)
        request.match(replace(match.receipt, stored=stores))
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def hand_over(done: Request, kv: PromptKV | None) -> None:
            loop.call_soon_threadsafe(self._after, done, kv, match, model, granted, flight, ended, served)

        self._aftermath.add(ended, request)
        if flight is not None:
            flight.is_computing = True  # cleared by `_after`, whatever becomes of this coroutine
        request.state = RequestState.WAITING  # from here on it belongs to the engine thread
        self._engine.submit(request, hand_over)
        await asyncio.shield(ended)

    def _give_donors(self, request: Request, match: Match, model: ModelKey, granted: Access, served: Served) -> None:
        """Nearest answers now; once the answer has begun, those that began alike, looked up beside the engine."""
        donors = [donor_of(found, served, time.time()) for found in match.donors]
        request.donor, request.more_donors = next(iter(donors), None), tuple(donors[1:])

        def look_up(tokens: Sequence[int]) -> None:
            self._engine.offer(request, self._lookup.openings(tokens, granted, model))

        def seek(tokens: Sequence[int]) -> None:
            with contextlib.suppress(RuntimeError):  # the pool is closed: the daemon is going down
                self._pool.submit(look_up, tokens)

        request.seek_donors = seek

    def _after(
        self, request: Request, kv: PromptKV | None, match: Match, model: ModelKey, granted: Access,
        flight: Flight | None, ended: asyncio.Future[None], served: Served,
    ) -> None:  # fmt: skip
        """The engine is done with it: let followers go, then write everything back off the hot path."""
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
                self._turns.note(request, granted, served)

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
        self._account(request, saved_ms=rate * request.num_cached_tokens)

    # Helpers of the above

    def _model_key(self, served: Served) -> ModelKey:
        return model_key(
            served, prefill_chunk_tokens=self._config.engine.prefill_chunk_tokens,
            block_tokens=self._config.cache.block_tokens,
        )  # fmt: skip

    def _access(self, ask: Ask) -> Access:
        return access(
            ask.options.strategy, user=ask.user, allow_global=self._config.cache.allow_global,
            namespace=ask.options.namespace,
        )  # fmt: skip

    def _require_served(self, model: str | None) -> Served:
        if self.is_draining:
            raise UnavailableError("the daemon is shutting down", retry_after_s=5)
        state, served = self._engine.model, self._engine.served
        if served is None:
            if state.error is not None:
                raise state.error
            percent = f" {state.progress:.0%}" if state.progress is not None else ""
            raise UnavailableError(f"the model is loading ({state.stage or 'starting'}{percent})", retry_after_s=1)
        if model is not None and model != served.info.name:
            raise NotFoundError(
                f"model {model!r} is not served; this daemon serves {served.info.name!r} "
                "(`semcache config set model.name NAME` and `semcache daemon restart` change it)",
                param="model",
            )
        return served

    def _publish(self, live: Live, event: Event) -> None:
        live.publish(event)
        if isinstance(event, Matched | End) or len(live.request.output_tokens) == 1:
            live.soon(self._journal.changed, live.request)

    def _account(self, request: Request, *, saved_ms: float) -> None:
        self._aftermath.run(request, self._journal.record, request, saved_ms)


def _in_flight(request: Request, entry: Entry) -> Receipt:
    return Receipt(
        outcome=Outcome.EXACT, reason="in_flight", strategy=request.options.strategy,
        scope=entry.scope.split(":", 1)[0].split("#", 1)[0], matched_prompt=entry.prompt, entry_age_s=0.0,
    )  # fmt: skip


def _computed_ms(request: Request) -> float:
    times = request.times
    return (times.ended - times.prefill_started) * 1e3 if times.ended and times.prefill_started else 0.0
