"""One answer from start to end: tokenise, look up, replay what is stored or have it computed, account.

The event loop's side of a request. Blocking work goes to the pool, forward passes to the engine thread; a request that
is in neither belongs to this file, which then also ends it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from functools import partial

from semcache.config import Config
from semcache.daemon.aftermath import Aftermath
from semcache.daemon.asked import model_key, request_of, tokenise
from semcache.daemon.cache.admit import wants_storing
from semcache.daemon.cache.identity import fits, identify
from semcache.daemon.cache.lessons import Lessons
from semcache.daemon.cache.lookup import Lookup, Match
from semcache.daemon.cache.strategy import Scope, access
from semcache.daemon.computation import Computations, Terms
from semcache.daemon.flights import Flight, Flights
from semcache.daemon.idle import IdleTime
from semcache.daemon.journal import Journal
from semcache.daemon.live import Ask, Live
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import End, Event, Matched, Outcome, Receipt, Request, RequestState
from semcache.daemon.served import Served
from semcache.daemon.turns import Turns
from semcache.errors import (
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
        lessons: Lessons,
        turns: Turns,
        idle: IdleTime,
        journal: Journal,
        flights: Flights,
        aftermath: Aftermath,
        computations: Computations,
        pool: Executor,
    ) -> None:
        self._config = config
        self._engine = loop
        self._lookup = lookup
        self._lessons = lessons
        self._turns = turns
        self._idle = idle
        self._journal = journal
        self._flights = flights
        self._aftermath = aftermath
        self._computations = computations
        self._pool = pool
        self._live: set[asyncio.Task[None]] = set()
        self._last_asked = time.monotonic()
        self.is_draining = False

    def idle_s(self) -> float:
        """Seconds since somebody last asked something; looking does not count."""
        return 0.0 if self._live else time.monotonic() - self._last_asked

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for the engine."""
        return self._computations.num_waiting

    # From the routes

    async def start(self, ask: Ask) -> Live:
        """Check and tokenise a request and set it going; whatever is wrong with it is raised here, before any queue."""
        served = self._require_served(ask.model)
        self._last_asked = time.monotonic()
        terms = self._terms(served, ask)
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._pool, tokenise, served, ask)
        live = Live(loop)
        live.request = request_of(ask, tokens, served, lambda event: self._publish(live, event))
        self._journal.opened(live.request)
        live.task = asyncio.create_task(self._run(live, terms))
        self._live.add(live.task)
        live.task.add_done_callback(self._forget)
        self._idle.end()  # not before: only the end of a live request tells it that nothing is asked
        return live

    async def preview(self, ask: Ask) -> tuple[Request, Match]:
        """What would be done with a question now; nothing is computed, counted or stored."""
        served = self._require_served(ask.model)
        terms = self._terms(served, ask)
        await self.settled(ask.user)
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._pool, tokenise, served, ask)
        request = request_of(ask, tokens, served, lambda _event: None)
        find = partial(self._lookup.find, request, terms.granted, terms.model, preview=True)
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
        await asyncio.get_running_loop().run_in_executor(self._pool, self._lessons.save)

    async def settled(self, user: str | None = None) -> None:
        """Wait until what ended before now, of everybody or of one user, is written; not for what still runs."""
        await self._aftermath.settled(user)

    # One request

    async def _run(self, live: Live, terms: Terms) -> None:
        """Never raises: whatever happens becomes the End of the request."""
        request = live.request
        try:
            async with asyncio.timeout(self._config.daemon.request_timeout_s):
                await self._answer(request, terms)
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

    async def _answer(self, request: Request, terms: Terms) -> None:
        request.state = RequestState.MATCHING
        shareable = self._lookup.may_replay(request) and request.options.mode.allows_exact
        if shareable and not request.options.refresh and await self._follow(request, terms):
            return
        # Nothing awaits between the last check for a leader and taking off, and a flight is cleared only when its
        # answer is committed: so the second of two identical requests finds either the flight or the stored answer.
        flight = self._take_off(request, terms) if shareable else None
        try:
            await self._look_up_and_answer(request, terms, flight)
        finally:
            if flight is not None and not flight.is_computing:
                self._flights.clear(flight)

    async def _follow(self, request: Request, terms: Terms) -> bool:
        """Wait for an identical request that is being computed; True when its answer served."""
        key = identify(terms.model.fingerprint, request).request_key
        while (found := self._flights.leader_of(terms.granted.read, key)) is not None:
            scope, leader = found
            entry = await leader.wait()
            if entry is not None:
                if not fits(request.sampling, entry.finish_reason, entry.num_completion_tokens):
                    return False
                self._replay(request, _in_flight(request, entry, scope), entry)
                return True
        return False

    def _take_off(self, request: Request, terms: Terms) -> Flight | None:
        if not wants_storing(request) or not terms.granted.write:
            return None
        key = identify(terms.model.fingerprint, request).request_key
        return self._flights.take_off(terms.granted.write, key)

    async def _look_up_and_answer(self, request: Request, terms: Terms, flight: Flight | None) -> None:
        loop, granted = asyncio.get_running_loop(), terms.granted
        if granted.read:
            await self.settled(request.user)  # who has an answer in hand finds it, also in other words
        match = await loop.run_in_executor(self._pool, self._lookup.find_answer, request, granted, terms.model)
        request.times.embed_ms, request.times.lookup_ms = match.embed_ms, match.lookup_ms
        request.considered = match.verdict.considered if match.verdict is not None else ()
        if match.answer is not None:
            self._replay(request, match.receipt, match.answer, match)
            if self._turns.concerns(request, granted):
                # The client has its answer; idle time must not begin before this is queued, nor a clear overtake it.
                noting = loop.run_in_executor(self._pool, self._turns.note, request, granted, terms.served)
                self._aftermath.add(noting, request)
                await noting
        elif request.options.cached_only:
            request.match(match.receipt)
            raise CachedOnlyMissError(f"no stored answer may be served for this prompt ({match.receipt.reason})")
        else:
            await self._computations.run(request, match, terms, flight)

    def _replay(self, request: Request, receipt: Receipt, entry: Entry, match: Match | None = None) -> None:
        request.match(receipt)
        request.finish_reason = entry.finish_reason
        request.emit(entry.answer_tokens, entry.answer)
        request.end(RequestState.FINISHED)
        self._account(request, saved_ms=entry.compute_ms)
        if match is not None and match.verdict is not None:
            self._aftermath.run(request, self._lessons.served, request, match)

    # Helpers of the above

    def _terms(self, served: Served, ask: Ask) -> Terms:
        cache = self._config.cache
        granted = access(
            ask.options.strategy, user=ask.user, allow_global=cache.allow_global, namespace=ask.options.namespace
        )
        return Terms(served, model_key(served, block_tokens=cache.block_tokens), granted)

    def _require_served(self, model: str | None) -> Served:
        if self.is_draining:
            raise UnavailableError("the daemon is shutting down", retry_after_s=5)
        state, served = self._engine.model, self._engine.served
        if served is None:
            if state.error is not None:
                raise state.error.bare()
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


def _in_flight(request: Request, entry: Entry, scope: Scope) -> Receipt:
    return Receipt(
        outcome=Outcome.EXACT, reason="in_flight", strategy=request.options.strategy, scope=scope.kind,
        matched_prompt=entry.prompt, entry_age_s=0.0,
    )  # fmt: skip
