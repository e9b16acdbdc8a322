"""The engine thread: the only owner of the model and of every device tensor.

Messages come in through one inbox, events go out through each request's `publish`. Introduces the engine to the
cache's hand-over; decides nothing about reuse and nothing about HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from semcache.daemon.cache.admit import PromptKV
from semcache.daemon.drafts import Drafts
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.sampler import NAN_LOGITS
from semcache.daemon.handover import PIECE_BYTES, HandOver, Handovers
from semcache.daemon.inbox import Command, Inbox, Submit
from semcache.daemon.request import Donor, Request, RequestState
from semcache.daemon.resident import LoadEngine, Resident
from semcache.daemon.scheduler import Decode, Prefill, Scheduler, Verify
from semcache.daemon.served import ModelState, Served
from semcache.daemon.streams import Streams
from semcache.errors import EngineError, ModelLoadError, SemcacheError, UnavailableError
from semcache.store.tensors import KVSpan

log = logging.getLogger("semcache.engine")


class EngineLoop:
    """Runs requests through the engine; every submitted request ends exactly once."""

    def __init__(
        self,
        load: LoadEngine,
        *,
        on_change: Callable[[], None] = lambda: None,
        keep_alive_s: float = 0,
        drafts: bool = True,
        block_tokens: int = 64,
        piece_bytes: int = PIECE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resident = Resident(load, on_change=on_change, keep_alive_s=keep_alive_s, clock=clock)
        self._clock = clock
        self._inbox = Inbox()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._scheduler = Scheduler(0)
        self._streams = Streams()
        self._drafts = Drafts(enabled=drafts)
        self._handovers = Handovers(block_tokens=block_tokens, piece_bytes=piece_bytes)
        self._piece_bytes = piece_bytes
        self._num_brought_bytes = 0  # since the last step
        self._is_to_unload = False
        self._has_failed_to_load = False  # and not yet answered everybody who waited for that
        self.num_failures = 0

    # Any thread

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def model(self) -> ModelState:
        return self._resident.model

    @property
    def served(self) -> Served | None:
        """None before the first load."""
        return self._resident.served

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting + self._inbox.num_submits

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def prefill_ms_per_token(self) -> float | None:
        """Of long prompts lately; None before the first."""
        return self._handovers.prefill_ms_per_token

    @property
    def unloads_in_s(self) -> float | None:
        return None if self._scheduler.num_running else self._resident.idle_left_s

    def submit(self, request: Request, hand_over: HandOver, served: Served | None) -> None:
        """Queue a request; `hand_over` gets its KV on the engine thread, once it ended and all of that is copied.

        `served` is the model that its tokens, KV and logits are of: another one, loaded meanwhile, refuses it. None
        where they are of whichever is loaded.
        """
        submit = Submit(request, hand_over, served)
        if not self._inbox.put(submit):
            _refuse(submit)

    def cancel(self, request: Request, error: SemcacheError | None = None) -> None:
        """Ask for the end of a request, as failed where there is an error; it comes before the next forward pass."""
        request.cancel_error = error
        request.cancel_requested = True
        self._inbox.put(Command(lambda: None))

    def bring(self, request: Request, span: KVSpan | None) -> None:
        """The next part of the KV of a submitted request that is arriving; None when there is no more."""
        self._inbox.put(Command(lambda: self._bring(request, span)))

    def offer(self, request: Request, donors: Sequence[Donor]) -> None:
        """Further donors for a request under way."""
        self._inbox.put(Command(lambda: self._offer(request, donors)))

    def load(self) -> None:
        self._inbox.put(Command(self._load))

    def unload(self) -> None:
        """Free the model's memory once nothing runs or waits; the cache stays."""
        self._inbox.put(Command(self._unload_when_idle))

    def stop(self, timeout_s: float | None = None) -> None:
        """End every live request and the thread."""
        self._inbox.put(Command(None))
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # Engine thread only, from here on

    def _run(self) -> None:
        try:
            self._serve_on()
        finally:
            self._shut_down()

    def _serve_on(self) -> None:
        while True:
            try:
                return self._serve()
            except Exception as error:
                # Nothing below should come to this; requests that nobody ends would wait for ever.
                log.exception("the engine thread starts again")
                self.num_failures += 1
                self._fail_all(EngineError(f"the engine failed: {type(error).__name__}: {error}"))

    def _shut_down(self) -> None:
        for submit in self._inbox.close():
            _refuse(submit)
        self._fail_all(_shutting_down())
        while self._handovers.leaving is not None:
            self._copy_piece()
        self._resident.unload()

    def _serve(self) -> None:
        while self._take_messages():
            self._end_cancelled()
            if self._is_to_unload:
                self._unload()
            self._step()
            if self._handovers.leaving is not None:
                self._copy_piece()

    def _take_messages(self) -> bool:
        """Handle what is in the inbox; waits only when there is nothing to compute. False ends the thread.

        No more than about a piece of the KV that is brought: running streams wait for the copy.
        """
        has_requests = any(True for _ in self._scheduler)
        has_work = not self._scheduler.is_idle or self._handovers.leaving is not None
        block = not has_work and (has_requests or not self._is_to_unload)
        self._num_brought_bytes = 0
        while self._num_brought_bytes < self._piece_bytes:
            timeout_s = self._resident.idle_left_s if block and not has_requests else None
            message = self._inbox.get(block=block, timeout_s=timeout_s)
            if message is None:
                self._has_failed_to_load = False
                if block:
                    self._unload()
                return True
            block = False
            if isinstance(message, Submit):
                self._take(message)
            elif message.action is None:
                return False
            else:
                message.action()
        return True

    @property
    def _is_busy(self) -> bool:
        return any(True for _ in self._scheduler) or self._handovers.leaving is not None

    def _take(self, submit: Submit) -> None:
        request = submit.request
        self._handovers.add(request, submit.hand_over)
        self._scheduler.add(request)
        self._ensure_loaded()
        if self._engine is None or self.served is None:
            error = self.model.error or ModelLoadError("the model is not loaded")
            self._end(request, RequestState.FAILED, error)
        elif submit.served is not None and not self.served.is_same_model(submit.served):
            error = UnavailableError("the model was changed while this was looked up; ask again", retry_after_s=1)
            self._end(request, RequestState.FAILED, error)

    def _load(self) -> None:
        self._is_to_unload = False
        self._ensure_loaded()

    def _ensure_loaded(self) -> None:
        """A load that failed has failed for everybody who waited for it: one that comes later tries again."""
        if self._has_failed_to_load:
            return
        self._resident.load()
        self._has_failed_to_load = self._engine is None
        if self._engine is not None:
            self._scheduler.num_slots = self._engine.num_slots

    @property
    def _engine(self) -> Engine | None:
        return self._resident.engine

    def _unload_when_idle(self) -> None:
        self._is_to_unload = True

    def _unload(self) -> None:
        if not self._is_busy:
            self._is_to_unload = False
            self._resident.unload()

    def _end_cancelled(self) -> None:
        for request in [r for r in self._scheduler if r.cancel_requested]:
            state = RequestState.FAILED if request.cancel_error is not None else RequestState.CANCELLED
            self._end(request, state, request.cancel_error)

    def _step(self) -> None:
        """One forward pass. An exception ends every running request and leaves the engine empty, not broken."""
        try:
            # One at a time: restoring copies KV, and running streams wait for it as they do for a chunk.
            if (request := self._scheduler.admit()) is not None:
                self._alone(self._begin, request)
            step = self._scheduler.next_step()
            if isinstance(step, Prefill):
                self._alone(self._prefill, step.request)
            elif isinstance(step, Verify):
                self._alone(self._verify, step.request)
            elif isinstance(step, Decode):
                self._decode(step.requests)
        except Exception as error:
            log.exception("engine step failed")
            self.num_failures += 1
            self._fail_all(EngineError(f"the engine failed: {type(error).__name__}: {error}"), only_running=True)

    def _alone(self, action: Callable[[Request], None], request: Request) -> None:
        """What the engine refuses about one request, such as logits that are no numbers, ends no other."""
        try:
            action(request)
        except EngineError as error:
            self._end(request, RequestState.FAILED, error)

    def _begin(self, request: Request) -> None:
        assert self._engine is not None
        request.times.prefill_started = self._clock()
        self._drafts.allow(request)
        self._engine.begin(request)
        self._drafts.begin(request, self._engine.info.vocab_size, self._engine.info.eos_token_ids)
        request.times.restored = self._clock()
        request.on_slot()
        self._streams.begin(request, self._engine.tokenizer)

    def _prefill(self, request: Request) -> None:
        assert self._engine is not None
        started = self._clock()
        # Whoever else runs, waits or may come soon is not to wait for more than a chunk.
        is_alone = self._scheduler.num_running == 1 and not self.num_waiting and not request.gives_way
        token = self._engine.prefill(request, wide=is_alone)
        self._handovers.add_prefill(request, (self._clock() - started) * 1e3)
        if token is not None:
            self._scheduler.start_decoding(request)
            if not request.output_tokens:  # else it is out: stored logits gave it before the KV proved unreadable
                self._accept(request, token)
            if request.is_arriving and not request.state.is_terminal:
                self._scheduler.park(request)
            self._propose(request)

    def _bring(self, request: Request, span: KVSpan | None) -> None:
        if not request.state.is_terminal:
            self._alone(lambda request: self._receive(request, span), request)

    def _receive(self, request: Request, span: KVSpan | None) -> None:
        assert self._engine is not None
        self._num_brought_bytes += 0 if span is None else span.size_bytes
        is_there = span is None or self._engine.receive(request, span)
        if not (is_there and request.is_arriving):  # whoever reads says that it was all when everything is tidied up
            return
        is_whole = self._engine.settle(request)
        if request.state is RequestState.DECODING:
            self._scheduler.resume(request, is_whole=is_whole)
            self._propose(request)

    def _decode(self, requests: list[Request]) -> None:
        assert self._engine is not None
        for request, token in zip(requests, self._engine.decode(requests), strict=True):
            if token is None:
                self._end(request, RequestState.FAILED, EngineError(NAN_LOGITS))
            else:
                self._accept(request, token)
        for request in requests:
            self._propose(request)

    def _propose(self, request: Request) -> None:
        """Make the request's next step a verification where its draft has something to offer."""
        assert self._engine is not None
        is_alone = self._scheduler.num_running == 1
        may_compute = request.state is RequestState.DECODING and not request.is_arriving
        if may_compute and self._drafts.propose(request, self._engine.room(request), is_alone=is_alone):
            self._scheduler.start_verifying(request)

    def _offer(self, request: Request, donors: Sequence[Donor]) -> None:
        if self._engine is not None and request.state is RequestState.DECODING:
            info = self._engine.info
            self._drafts.offer(request, donors, info.vocab_size, info.eos_token_ids)
            self._propose(request)

    def _verify(self, request: Request) -> None:
        assert self._engine is not None
        proposal = self._drafts.take(request)
        verified = self._engine.verify(request, proposal)
        self._drafts.learn(request, proposal, verified.num_accepted, is_tied=verified.is_tied)
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
        assert self._engine is not None
        request.finish_reason = self._streams.accept(request, token, self._engine.info)
        if request.finish_reason is not None:
            self._end(request, RequestState.FINISHED)

    def _end(self, request: Request, state: RequestState, error: SemcacheError | None = None) -> None:
        """Tell the client first; copying KV for the cache comes after, so it costs the client nothing."""
        self._scheduler.remove(request)
        self._streams.forget(request)
        self._drafts.forget(request)
        request.settle_draft()
        request.end(state, error)
        engine = self._engine
        if state is not RequestState.FAILED and engine is not None and self._handovers.leave(request, engine):
            self._scheduler.keep_slot(request)
        else:
            self._let_go(request, None)

    def _copy_piece(self) -> None:
        """A piece of what an ended request leaves; once all of it is there its slot is free."""
        request = self._handovers.leaving
        assert request is not None
        assert self._engine is not None
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

    def _let_go(self, request: Request, kv: PromptKV | None) -> None:
        """The last of a request on this thread; who waits for it hears of it, whatever becomes of the slot."""
        self._scheduler.free_slot(request)
        try:
            if self._engine is not None:
                self._engine.release(request)
        except Exception:
            log.exception("the slot of request %s could not be cleared", request.id)
            self.num_failures += 1
        self._resident.used()
        self._handovers.finish(request, kv)

    def _fail_all(self, error: SemcacheError, *, only_running: bool = False) -> None:
        """One after the other: what goes wrong with the end of one must not keep the others waiting."""
        for request in list(self._scheduler):
            if not only_running or request.slot is not None or request.state is not RequestState.WAITING:
                try:
                    self._end(request, RequestState.FAILED, error)
                except Exception:
                    log.exception("request %s did not end well", request.id)


def _shutting_down() -> SemcacheError:
    return UnavailableError("the daemon is shutting down", retry_after_s=1)


def _refuse(submit: Submit) -> None:
    """On whichever thread finds that the engine's takes no more."""
    submit.request.end(RequestState.FAILED, _shutting_down())
    submit.hand_over(submit.request, None)
