"""Which requests compute in the next step. Pure Python: no torch, no clock, no sleep.

Where passes may be joined, a step takes the rows of every running stream, and beside them one chunk: of a prompt, or of
drafts. Otherwise chunks alternate with decode steps. Either way a stream that decodes never waits for more than one
chunk, and one with a draft to verify waits for its turn among the chunks. Slots are given to users in turn, so one
user's queue never starves another's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from semcache.daemon.request import Request, RequestState

# With a chunk in one step, while no stream waits for them. Whoever comes meanwhile would be behind these chunks anyway,
# but for a first token that needs no pass.
MAX_PROMPTS = 4


@dataclass(frozen=True)
class Step:
    """What is computed next, in one pass if it can be."""

    prefills: tuple[Request, ...] = ()  # a chunk of each one's prompt
    verifies: tuple[Request, ...] = ()  # the drafts of requests that decode otherwise
    decodes: tuple[Request, ...] = ()  # one token for each

    @property
    def is_shared(self) -> bool:
        """Whether it is more than one prompt's chunk, one request's draft, or the tokens of streams."""
        return len(self.prefills) + len(self.verifies) + bool(self.decodes) > 1


class Scheduler:
    """Queues by user; a request is in exactly one of waiting, prefilling, verifying, decoding and parked, or ended.

    `chunk_tokens` are the rows of drafts that are verified in one step; None where passes are not joined.
    """

    def __init__(self, num_slots: int, chunk_tokens: int | None = None) -> None:
        self.num_slots = num_slots
        self.chunk_tokens = chunk_tokens
        self._waiting: OrderedDict[str, deque[Request]] = OrderedDict()
        self._prefilling: deque[Request] = deque()
        self._verifying: OrderedDict[Request, int] = OrderedDict()  # and how many rows it takes
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
    def has_streams(self) -> bool:
        """Whether somebody has a first token and waits for the next one, for a step or for KV."""
        return bool(self._decoding or self._verifying or self._parked)

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
        """What comes next; prompts take turns among each other."""
        has_chunks = bool(self._prefilling or self._verifying)
        if has_chunks and self.chunk_tokens is not None:
            prefills, verifies = self._next_chunks(self.chunk_tokens, 1 if self.has_streams else MAX_PROMPTS)
            return Step(prefills, verifies, tuple(self._decoding))
        if has_chunks and not (self._chunk_last and self._decoding):
            self._chunk_last = True
            return Step(*self._next_chunks(1, 1))
        self._chunk_last = False
        return Step(decodes=tuple(self._decoding)) if self._decoding else None

    def _next_chunks(self, max_rows: int, max_prompts: int) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
        """Prompts or drafts: these every other time, for a stream must not wait for all prompts, nor they for all."""
        self._verified_last = bool(self._verifying) and not (self._verified_last and self._prefilling)
        if not self._verified_last:
            prefills = [self._prefilling.popleft() for _ in range(min(max_prompts, len(self._prefilling)))]
            self._prefilling.extend(prefills)
            return tuple(prefills), ()
        verifies: list[Request] = []
        for request, num_rows in list(self._verifying.items()):
            max_rows -= num_rows
            if verifies and max_rows < 0:
                break
            verifies.append(request)
            self._verifying.move_to_end(request)
        return (), tuple(verifies)

    def start_decoding(self, request: Request) -> None:
        """The prompt or the draft is through; the request joins the decode batch."""
        if request.state is RequestState.PREFILLING:
            self._prefilling.remove(request)
        else:
            del self._verifying[request]
        request.state = RequestState.DECODING
        self._decoding.append(request)

    def start_verifying(self, request: Request, num_rows: int) -> None:
        """Take a request out of the decode batch for a draft that takes so many rows."""
        self._decoding.remove(request)
        self._verifying[request] = num_rows

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
            del self._verifying[request]
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
