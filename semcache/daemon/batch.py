"""The requests that the engine's thread holds, from the queue to the hand-over: what each step does to them.

Introduces the engine to the cache's hand-over; knows nothing of other threads and decides nothing about reuse.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from semcache.daemon.cache.admit import PromptKV
from semcache.daemon.drafts import Drafts
from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import MAX_CHUNKS, Engine
from semcache.daemon.engine.sampler import NAN_LOGITS
from semcache.daemon.engine.verify import Verified
from semcache.daemon.handover import HandOver, Handovers
from semcache.daemon.request import Donor, Request, RequestState
from semcache.daemon.resident import Resident
from semcache.daemon.scheduler import Scheduler, Step
from semcache.daemon.streams import Streams
from semcache.errors import EngineError, SemcacheError
from semcache.store.tensors import KVSpan

log = logging.getLogger("semcache.engine")


class Batch:
    """Whoever was added ends exactly once, whatever goes wrong. Engine thread only."""

    def __init__(
        self, resident: Resident, scheduler: Scheduler, handovers: Handovers, drafts: Drafts,
        clock: Callable[[], float], *, is_awaited: Callable[[], bool], piece_bytes: int,
    ) -> None:  # fmt: skip
        self._resident = resident
        self._scheduler = scheduler
        self._handovers = handovers
        self._drafts = drafts
        self._clock = clock
        self._is_awaited = is_awaited  # whether somebody is on the way here
        self._piece_bytes = piece_bytes
        self._streams = Streams()
        # KV that arrives, until it is taken; apart from the messages, none of which is to wait for a copy.
        self._brought: deque[tuple[Request, KVSpan | None]] = deque()
        self.num_failures = 0

    @property
    def has_requests(self) -> bool:
        return any(True for _ in self._scheduler)

    @property
    def is_busy(self) -> bool:
        """Whether the model is needed."""
        return self.has_requests or self._handovers.leaving is not None

    @property
    def is_idle(self) -> bool:
        """Nothing to compute and nothing to copy; whoever is here waits for KV that is being read."""
        return self._scheduler.is_idle and self._handovers.leaving is None and not self._brought

    def add(self, request: Request, hand_over: HandOver) -> None:
        self._handovers.add(request, hand_over)
        self._scheduler.add(request)

    def bring(self, request: Request, span: KVSpan | None) -> None:
        """The next part of the KV of a request that is arriving, for `take_brought`; None when there is no more."""
        if not request.state.is_terminal:
            self._brought.append((request, span))

    def take_brought(self) -> None:
        """Copy about a piece of the KV that was brought, at most: running streams wait for it."""
        copied_bytes = 0
        while self._brought and copied_bytes < self._piece_bytes:
            request, span = self._brought.popleft()
            if span is not None and request.slot is not None:  # else it is kept as it is until there is a slot
                copied_bytes += span.size_bytes
            self._alone(partial(self._receive, span=span), request)

    def offer(self, request: Request, donors: Sequence[Donor]) -> None:
        """Further donors."""
        if self._resident.engine is not None and request.state is RequestState.DECODING:
            info = self._engine.info
            self._drafts.offer(request, donors, info.vocab_size, info.eos_token_ids)
            self._propose(request)

    def step(self) -> None:
        """What the scheduler wants next. An exception ends every running request and leaves the engine empty."""
        try:
            self._admit()
            step = self._scheduler.next_step()
            if step is not None and not (step.is_shared and self._together(step)):
                self._one_by_one(step)
        except Exception as error:
            log.exception("engine step failed")
            self.break_off(error, only_running=True)

    def copy_piece(self) -> None:
        """A piece of what an ended request leaves, if any; once all of it is there its slot is free."""
        request = self._handovers.leaving
        if request is None:
            return
        try:
            kv = self._handovers.copy_piece(self._engine)
        except Exception:
            # The answer is out; without its KV the next request computes again.
            log.exception("the KV of request %s is not kept", request.id)
            self.num_failures += 1
            self._let_go(request, None)
        else:
            if kv is not None:
                self._let_go(request, kv)

    def end_cancelled(self) -> None:
        for request in [r for r in self._scheduler if r.cancel_requested]:
            state = RequestState.FAILED if request.cancel_error is not None else RequestState.CANCELLED
            self.end(request, state, request.cancel_error)

    def end(self, request: Request, state: RequestState, error: SemcacheError | None = None) -> None:
        """Tell the client first; copying KV for the cache comes after, so it costs the client nothing."""
        self._scheduler.remove(request)
        self._streams.forget(request)
        self._drafts.forget(request)
        self._brought = deque(brought for brought in self._brought if brought[0] is not request)
        request.settle_draft()
        request.end(state, error)
        engine = self._resident.engine
        if state is not RequestState.FAILED and engine is not None and self._handovers.leave(request, engine):
            self._scheduler.keep_slot(request)
        else:
            self._let_go(request, None)

    def break_off(self, error: Exception, *, only_running: bool = False) -> None:
        """What should not have happened did: nobody goes on from here."""
        self.num_failures += 1
        self.fail_all(EngineError(f"the engine failed: {type(error).__name__}: {error}"), only_running=only_running)

    def fail_all(self, error: SemcacheError, *, only_running: bool = False) -> None:
        """One after the other: what goes wrong with the end of one must not keep the others waiting."""
        for request in list(self._scheduler):
            if not only_running or request.slot is not None or request.state is not RequestState.WAITING:
                try:
                    self.end(request, RequestState.FAILED, error)
                except Exception:
                    log.exception("request %s did not end well", request.id)

    @property
    def _engine(self) -> Engine:
        engine = self._resident.engine
        assert engine is not None
        return engine

    def _alone(self, action: Callable[[Request], None], request: Request) -> None:
        """What the engine refuses about one request, such as logits that are no numbers, ends no other."""
        try:
            action(request)
        except EngineError as error:
            self.end(request, RequestState.FAILED, error)

    def _begin(self, request: Request) -> None:
        request.times.prefill_started = self._clock()
        self._drafts.allow(request)
        self._engine.begin(request)
        self._drafts.begin(request, self._engine.info.vocab_size, self._engine.info.eos_token_ids)
        request.times.restored = self._clock()
        request.on_slot()
        self._streams.begin(request, self._engine.tokenizer)
        self._begin_answer(request)  # where no pass is needed for it, it does not wait for one

    def _admit(self) -> None:
        """One at a time where somebody waits for it: restoring copies KV, which may take as long as a chunk."""
        while (request := self._scheduler.admit()) is not None:
            self._alone(self._begin, request)
            if self._scheduler.has_streams or request.num_restored:
                return

    def _together(self, step: Step) -> bool:
        """In one pass; False where the engine computes these one by one."""
        started = self._clock()
        drafted = [(request, self._drafts.proposal(request)) for request in step.verifies]
        before = [request.num_computed for request in step.prefills]
        try:
            found = self._engine.together(step.prefills, drafted, step.decodes)
        except EngineError:
            found = None  # what is refused about one of them ends that one
        if found is None:
            return False
        ms_per_row = (self._clock() - started) * 1e3 / found.num_rows
        for request, num_computed in zip(step.prefills, before, strict=True):
            # Rows cost about the same, whosever they are.
            self._handovers.add_prefill(request, (request.num_computed - num_computed) * ms_per_row)
            self._alone(self._begin_answer, request)
        for (request, proposal), verified in zip(drafted, found.verified, strict=True):
            self._verified(request, proposal, verified)
        self._decoded(step.decodes, found.tokens)
        return True

    def _one_by_one(self, step: Step) -> None:
        for request in step.prefills:
            self._alone(self._prefill, request)
        for request in step.verifies:
            self._alone(self._verify, request)
        if step.decodes:
            self._decoded(step.decodes, self._engine.decode(step.decodes))

    def _prefill(self, request: Request) -> None:
        started = self._clock()
        # Whoever else runs, waits or may come soon is not to wait for more than a chunk of this prompt.
        is_alone = self._scheduler.num_running == 1 and not self._scheduler.num_waiting and not self._is_awaited()
        max_chunks = MAX_CHUNKS if is_alone and not request.gives_way else 1
        token = self._engine.prefill(request, max_chunks=max_chunks)
        self._handovers.add_prefill(request, (self._clock() - started) * 1e3)
        self._answer_with(request, token)

    def _begin_answer(self, request: Request) -> None:
        self._answer_with(request, self._engine.first_token(request))

    def _answer_with(self, request: Request, token: int | None) -> None:
        """The first token of an answer; None where the prompt is not complete."""
        if token is None:
            return
        self._scheduler.start_decoding(request)
        if not request.output_tokens:  # else it is out: stored logits gave it before the KV proved unreadable
            self._accept(request, token)
        if request.is_arriving and not request.state.is_terminal:
            self._scheduler.park(request)
        self._propose(request)

    def _receive(self, request: Request, span: KVSpan | None) -> None:
        is_there = span is None or self._engine.receive(request, span)
        if not (is_there and request.is_arriving):  # whoever reads says that it was all when everything is tidied up
            return
        is_whole = self._engine.settle(request)
        request.on_arrived()
        if request.state is RequestState.DECODING:
            self._scheduler.resume(request, is_whole=is_whole)
            self._propose(request)

    def _decoded(self, requests: Sequence[Request], tokens: Sequence[int | None]) -> None:
        for request, token in zip(requests, tokens, strict=True):
            if token is None:
                self.end(request, RequestState.FAILED, EngineError(NAN_LOGITS))
            else:
                self._accept(request, token)
        for request in requests:
            self._propose(request)

    def _propose(self, request: Request) -> None:
        """Make the request's next step a verification where its draft has something to offer."""
        if request.state is not RequestState.DECODING or request.is_arriving:
            return
        is_alone = self._scheduler.num_running == 1
        proposal = self._drafts.propose(request, self._engine.room(request), is_alone=is_alone)
        if proposal is not None:
            self._scheduler.start_verifying(request, self._engine.num_rows(request, proposal))

    def _verify(self, request: Request) -> None:
        proposal = self._drafts.proposal(request)
        self._verified(request, proposal, self._engine.verify(request, proposal))

    def _verified(self, request: Request, proposal: Proposal, verified: Verified) -> None:
        self._drafts.learn(request, verified.num_accepted, is_tied=verified.is_tied)
        self._scheduler.start_decoding(request)
        for i, token in enumerate(verified.tokens):
            if request.state.is_terminal:
                return
            if proposal.source == "donor" and i < verified.num_accepted:
                request.num_draft_accepted += 1
            self._accept(request, token)
        self._propose(request)

    def _accept(self, request: Request, token: int) -> None:
        """Append one token to the answer, and end the request where that was the last."""
        request.finish_reason = self._streams.accept(request, token, self._engine.info)
        if request.finish_reason is not None:
            self.end(request, RequestState.FINISHED)

    def _let_go(self, request: Request, kv: PromptKV | None) -> None:
        """The last of a request on this thread; who waits for it hears of it, whatever becomes of the slot."""
        self._scheduler.free_slot(request)
        try:
            if self._resident.engine is not None:
                self._resident.engine.release(request)
        except Exception:
            log.exception("the slot of request %s could not be cleared", request.id)
            self.num_failures += 1
        self._resident.used()
        self._handovers.finish(request, kv)
