"""The engine thread: the only owner of the model and of every device tensor.

Messages come in through one inbox, events go out through each request's `publish`. Decides nothing about reuse and
nothing about HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from semcache.daemon.batch import Batch
from semcache.daemon.drafts import Drafts
from semcache.daemon.handover import PIECE_BYTES, HandOver, Handovers
from semcache.daemon.inbox import Command, Inbox, Submit
from semcache.daemon.request import Donor, Request, RequestState
from semcache.daemon.resident import LoadEngine, Resident
from semcache.daemon.scheduler import Scheduler
from semcache.daemon.served import ModelState, Served
from semcache.errors import ModelLoadError, SemcacheError, UnavailableError
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
        self._inbox = Inbox()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._scheduler = Scheduler(0)
        self._handovers = Handovers(block_tokens=block_tokens, piece_bytes=piece_bytes)
        self._batch = Batch(
            self._resident, self._scheduler, self._handovers, Drafts(enabled=drafts), clock,
            is_awaited=lambda: self._inbox.num_submits > 0, piece_bytes=piece_bytes,
        )  # fmt: skip
        self._is_to_unload = False
        self._has_failed_to_load = False  # and not yet answered everybody who waited for that

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
    def num_failures(self) -> int:
        """What went wrong and should not have."""
        return self._batch.num_failures

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
        self._inbox.put(Command(lambda: self._batch.bring(request, span)))

    def offer(self, request: Request, donors: Sequence[Donor]) -> None:
        """Further donors for a request under way."""
        self._inbox.put(Command(lambda: self._batch.offer(request, donors)))

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
                self._batch.break_off(error)

    def _shut_down(self) -> None:
        for submit in self._inbox.close():
            _refuse(submit)
        self._batch.fail_all(_shutting_down())
        while self._handovers.leaving is not None:
            self._batch.copy_piece()
        self._resident.unload()

    def _serve(self) -> None:
        while self._take_messages():
            self._batch.end_cancelled()
            if self._is_to_unload:
                self._unload()
            self._batch.take_brought()
            self._batch.step()
            self._batch.copy_piece()

    def _take_messages(self) -> bool:
        """Handle what is in the inbox; waits only when there is nothing to do. False ends the thread.

        No message takes long: KV is only noted here, so whoever comes behind it is seen before it is copied.
        """
        has_requests = self._batch.has_requests
        block = self._batch.is_idle and (has_requests or not self._is_to_unload)
        while True:
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

    def _take(self, submit: Submit) -> None:
        request = submit.request
        self._batch.add(request, submit.hand_over)
        self._ensure_loaded()
        served = self.served
        if self._resident.engine is None or served is None:
            error = self.model.error or ModelLoadError("the model is not loaded")
            self._batch.end(request, RequestState.FAILED, error)
        elif submit.served is not None and not served.is_same_model(submit.served):
            changed = UnavailableError("the model was changed while this was looked up; ask again", retry_after_s=1)
            self._batch.end(request, RequestState.FAILED, changed)

    def _load(self) -> None:
        self._is_to_unload = False
        self._ensure_loaded()

    def _ensure_loaded(self) -> None:
        """A load that failed has failed for everybody who waited for it: one that comes later tries again."""
        if self._has_failed_to_load:
            return
        self._resident.load()
        engine = self._resident.engine
        self._has_failed_to_load = engine is None
        if engine is not None:
            self._scheduler.num_slots = engine.num_slots
            self._scheduler.chunk_tokens = engine.prefill_chunk_tokens if engine.joins else None

    def _unload_when_idle(self) -> None:
        self._is_to_unload = True

    def _unload(self) -> None:
        if not self._batch.is_busy:
            self._is_to_unload = False
            self._resident.unload()


def _shutting_down() -> SemcacheError:
    return UnavailableError("the daemon is shutting down", retry_after_s=1)


def _refuse(submit: Submit) -> None:
    """On whichever thread finds that the engine's takes no more."""
    submit.request.end(RequestState.FAILED, _shutting_down())
    submit.hand_over(submit.request, None)
