"""Which requests compute in the next step. Pure Python: no torch, no clock, no sleep.

Chunks (of a prompt, or of a draft to verify) alternate with decode steps, so they never stall running streams for more
than one chunk; slots are given to users in turn, so one user's queue never starves another's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from semcache.daemon.request import Request, RequestState


@dataclass(frozen=True)
class Prefill:
    """One chunk of one request."""

    request: Request


@dataclass(frozen=True)
class Verify:
    """The draft of one request that decodes otherwise."""

    request: Request


@dataclass(frozen=True)
class Decode:
    """One token for each of these."""

    requests: list[Request]


Step = Prefill | Verify | Decode


class Scheduler:
    """Queues by user; a request is in exactly one of waiting, prefilling, verifying, decoding and parked, or ended."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._waiting: OrderedDict[str, deque[Request]] = OrderedDict()
        self._prefilling: deque[Request] = deque()
        self._verifying: deque[Request] = deque()
        self._decoding: list[Request] = []
        self._leaving: list[Request] = []  # ended; their slots are still read
        self._parked: list[Request] = []  # their KV is being read
        self._chunk_last = False
        self._verified_last = False  # among the chunks
        self.num_waiting = 0  # kept, not derived: other threads read it while the queues change

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._verifying) + len(self._decoding) + len(self._parked)

    @property
    def is_idle(self) -> bool:
        """Nothing to compute: whoever has a slot waits for its KV, and nobody else gets one."""
        is_computing = self._prefilling or self._verifying or self._decoding
        has_slot = self.num_running + len(self._leaving) < self.num_slots
        return not is_computing and not (self._waiting and has_slot)

    def __iter__(self) -> Iterator[Request]:
        for queue in self._waiting.values():
            yield from queue
        yield from self._prefilling
        yield from self._verifying
        yield from self._decoding
        yield from self._parked

    def add(self, request: Request) -> None:
        request.state = RequestState.WAITING
        self.num_waiting += 1
        self._waiting.setdefault(request.user, deque()).append(request)

    def admit(self) -> Request | None:
        """The next waiting request that gets a slot; users take turns."""
        if not self._waiting or self.num_running + len(self._leaving) >= self.num_slots:
            return None
        user, queue = next(iter(self._waiting.items()))
        request = queue.popleft()
        self.num_waiting -= 1
        del self._waiting[user]
        if queue:
            self._waiting[user] = queue  # to the end of the line
        request.state = RequestState.PREFILLING
        self._prefilling.append(request)
        return request

    def keep_slot(self, request: Request) -> None:
        """Nobody gets the slot of a request that ended, until `free_slot`."""
        self._leaving.append(request)

    def free_slot(self, request: Request) -> None:
        """Harmless where the slot was not kept."""
        if request in self._leaving:
            self._leaving.remove(request)

    def next_step(self) -> Step | None:
        """The next forward pass; chunks take turns with the decode batch, and among each other."""
        if (self._prefilling or self._verifying) and not (self._chunk_last and self._decoding):
            self._chunk_last = True
            return self._next_chunk()
        self._chunk_last = False
        return Decode(list(self._decoding)) if self._decoding else None

    def _next_chunk(self) -> Prefill | Verify:
        """Drafts every other time: a running stream must not wait for all prompts, nor a prompt for all drafts."""
        self._verified_last = bool(self._verifying) and not (self._verified_last and self._prefilling)
        chunks = self._verifying if self._verified_last else self._prefilling
        request = chunks.popleft()
        chunks.append(request)
        return Verify(request) if self._verified_last else Prefill(request)

    def start_decoding(self, request: Request) -> None:
        """The prompt or the draft is through; the request joins the decode batch."""
        (self._prefilling if request.state is RequestState.PREFILLING else self._verifying).remove(request)
        request.state = RequestState.DECODING
        self._decoding.append(request)

    def start_verifying(self, request: Request) -> None:
        """Take a request out of the decode batch for one chunk of its own."""
        self._decoding.remove(request)
        self._verifying.append(request)

    def park(self, request: Request) -> None:
        """Take a request out of the decode batch until its KV is there; the others go on."""
        self._decoding.remove(request)
        self._parked.append(request)

    def resume(self, request: Request, *, is_whole: bool) -> None:
        """The KV of a parked request is there, or what is missing of it has to be computed."""
        self._parked.remove(request)
        if is_whole:
            self._decoding.append(request)
        else:
            request.state = RequestState.PREFILLING
            self._prefilling.append(request)

    def remove(self, request: Request) -> None:
        """Take out a request that ended, wherever it is."""
        if request in self._prefilling:
            self._prefilling.remove(request)
        elif request in self._verifying:
            self._verifying.remove(request)
        elif request in self._decoding:
            self._decoding.remove(request)
        elif request in self._parked:
            self._parked.remove(request)
        else:
            queue = self._waiting.get(request.user)
            if queue is not None and request in queue:
                queue.remove(request)
                self.num_waiting -= 1
                if not queue:
                    del self._waiting[request.user]
