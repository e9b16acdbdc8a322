"""KV that leaves its slot piece by piece: nobody waits for more than one piece, and every request still ends once."""

from __future__ import annotations

import itertools
import queue
import random
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from semcache.daemon.cache.admit import PromptKV, cut
from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import Engine, Together
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import CacheOptions, End, Event, Message, Request, RequestState, Sampling
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import CHUNK_TOKENS, load, random_prompt, save_model

TIMEOUT_S = 60
NUM_PIECES = 5
LONG = random_prompt(random.Random(1), NUM_PIECES * CHUNK_TOKENS)
SHORT = random_prompt(random.Random(2), 5)
OTHER = random_prompt(random.Random(3), 7)


class Traced(Engine):
    """Writes down what it does; `on_piece` is called on its thread before each piece of the long prompt."""

    trace: list[str]
    on_piece: Callable[[int], object]
    on_decode: Callable[[], object]

    def begin(self, request: Request) -> None:
        self.trace.append(f"begin {request.id}")
        super().begin(request)

    def prefill(self, request: Request, *, max_chunks: int = 1) -> int | None:
        self.trace.append(f"prefill {request.id}")
        return super().prefill(request, max_chunks=max_chunks)

    def decode(self, requests: Sequence[Request]) -> list[int | None]:
        self.trace.append("decode")
        self.on_decode()
        return super().decode(requests)

    def together(
        self, prefills: Sequence[Request], drafted: Sequence[tuple[Request, Proposal]], decodes: Sequence[Request]
    ) -> Together | None:
        found = super().together(prefills, drafted, decodes)
        if found is not None:
            self.trace += [f"prefill {request.id}" for request in prefills]
            if decodes:
                self.trace.append("decode")
                self.on_decode()
        return found

    def receive(self, request: Request, span: KVSpan) -> bool:
        self.trace.append("receive")
        return super().receive(request, span)

    def kv(self, request: Request, start: int, stop: int) -> KVSpan:
        if request.id == "long":
            self.on_piece(start // CHUNK_TOKENS)
        self.trace.append(f"kv {request.id}")
        return super().kv(request, start, stop)


class Asked:
    """A request, its end, and what was handed over; each is taken once."""

    def __init__(self, name: str, prompt: list[int], *, max_tokens: int, user: str = "os:1") -> None:
        self.ends: queue.SimpleQueue[End] = queue.SimpleQueue()
        self.handed: queue.SimpleQueue[PromptKV | None] = queue.SimpleQueue()
        self.request = Request(
            id=name, user=user, model="m", messages=(Message("user", "?"),), prompt_tokens=prompt,
            sampling=Sampling(max_tokens=max_tokens), options=CacheOptions(), publish=self._publish,
        )  # fmt: skip

    def _publish(self, event: Event) -> None:
        if isinstance(event, End):
            self.ends.put(event)

    def submit(self, loop: EngineLoop) -> Asked:
        loop.submit(self.request, lambda _request, kv: self.handed.put(kv), loop.served)
        return self

    def kv(self) -> PromptKV | None:
        return self.handed.get(timeout=TIMEOUT_S)

    def assert_ended_once(self, state: RequestState = RequestState.FINISHED) -> None:
        assert self.ends.get(timeout=TIMEOUT_S).state is state
        assert self.ends.empty()
        assert self.handed.empty()


class Arm:
    """An engine on its thread, with pieces of one block."""

    def __init__(self, loaded: LoadedModel, num_slots: int) -> None:
        self.engine = Traced(loaded, num_slots=num_slots, prefill_chunk_tokens=CHUNK_TOKENS)
        self.engine.trace, self.engine.on_piece = [], lambda _number: None
        self.engine.on_decode = lambda: None
        self.loop = EngineLoop(lambda _progress: self.engine, drafts=False, block_tokens=CHUNK_TOKENS, piece_bytes=1)
        self.loop.start()

    def while_it_runs(self, *others: Asked) -> Asked:
        """A stream that goes on until all the others are handed over, which begin with it."""
        stream = Asked("stream", SHORT, max_tokens=200)
        left = len(others)

        def handed(other: Asked, kv: PromptKV | None) -> None:
            nonlocal left
            left -= 1
            stream.request.cancel_requested = left == 0
            other.handed.put(kv)

        stream.submit(self.loop)
        for other in others:
            self.loop.submit(other.request, lambda _request, kv, other=other: handed(other, kv), None)
        return stream


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save_model(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture
def make_arm(llama: LoadedModel) -> Iterator[Callable[[int], Arm]]:
    arms: list[Arm] = []

    def make(num_slots: int) -> Arm:
        arms.append(Arm(llama, num_slots))
        return arms[-1]

    yield make
    for arm in arms:
        arm.loop.stop(TIMEOUT_S)


def arriving(kv: PromptKV) -> Asked:
    """The long prompt once more, whose KV is still being read."""
    late = Asked("late", LONG, max_tokens=2)
    late.request.num_restored, late.request.prompt_logits, late.request.is_arriving = len(LONG), kv.logits, True
    return late


def assert_whole(kv: PromptKV | None, num_spans: int = NUM_PIECES) -> None:
    assert kv is not None
    assert [span.num_tokens for span in kv.spans] == [CHUNK_TOKENS] * num_spans


def test_a_running_stream_waits_for_one_piece_at_a_time(make_arm: Callable[[int], Arm]) -> None:
    arm = make_arm(2)
    long = Asked("long", LONG, max_tokens=1)
    has_ended: list[bool] = []
    arm.engine.on_piece = lambda _number: has_ended.append(not long.ends.empty())
    stream = arm.while_it_runs(long)
    pieces = long.kv()
    assert_whole(pieces)
    assert has_ended == [True] * NUM_PIECES, "the client comes first"
    assert stream.kv() is not None
    trace = arm.engine.trace
    at = [number for number, what in enumerate(trace) if what == "kv long"]
    assert len(at) == NUM_PIECES
    assert all("decode" in trace[before:after] for before, after in itertools.pairwise(at))
    long.assert_ended_once()
    stream.assert_ended_once(RequestState.CANCELLED)
    arm.engine.on_piece = lambda _number: None
    again = Asked("alone", LONG, max_tokens=1).submit(arm.loop).kv()
    assert pieces is not None
    assert again is not None
    assert torch.equal(cut(pieces.spans, 0, len(LONG)).keys, cut(again.spans, 0, len(LONG)).keys)


def test_a_slot_is_free_once_the_last_piece_is_copied(make_arm: Callable[[int], Arm]) -> None:
    arm = make_arm(2)
    long, next_one = Asked("long", LONG, max_tokens=1), Asked("next", OTHER, max_tokens=1)
    arm.while_it_runs(long, next_one)
    assert_whole(long.kv())
    assert next_one.kv() is not None
    trace = arm.engine.trace
    last_piece = max(number for number, what in enumerate(trace) if what == "kv long")
    assert trace.index("begin next") > last_piece
    long.assert_ended_once()
    next_one.assert_ended_once()


def test_what_comes_while_pieces_are_copied_does_not_wait_for_the_last(make_arm: Callable[[int], Arm]) -> None:
    arm = make_arm(2)
    late = Asked("late", OTHER, max_tokens=1)
    arm.engine.on_piece = lambda number: late.submit(arm.loop) if number == 1 else None
    long = Asked("long", LONG, max_tokens=1).submit(arm.loop)
    assert_whole(long.kv())
    assert late.kv() is not None
    trace = arm.engine.trace
    assert trace.index("begin late") < max(number for number, what in enumerate(trace) if what == "kv long")
    late.assert_ended_once()


def test_a_piece_that_cannot_be_copied_costs_its_request_the_kv_and_nobody_else(make_arm: Callable[[int], Arm]) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    arm = make_arm(2)
    arm.engine.on_piece = fail
    long, next_one = Asked("long", LONG, max_tokens=1), Asked("next", OTHER, max_tokens=1)
    stream = arm.while_it_runs(long, next_one)
    assert long.kv() is None
    assert next_one.kv() is not None
    assert stream.kv() is not None
    assert arm.loop.num_failures == 1
    assert arm.engine.num_free_slots == 2
    for asked in (long, next_one):
        asked.assert_ended_once()


def test_streams_go_on_between_the_parts_of_kv_that_arrives(make_arm: Callable[[int], Arm]) -> None:
    arm = make_arm(3)
    kv = Asked("cold", LONG, max_tokens=1).submit(arm.loop).kv()
    assert kv is not None
    late, other = arriving(kv), Asked("other", OTHER, max_tokens=1)
    late.request.on_arrived = lambda: arm.engine.trace.append("arrived")
    parts: list[KVSpan | None] = [*kv.spans, None]

    def bring() -> None:
        """All of it at once, beside a stream, and somebody else right behind it."""
        if parts and late.request.output_tokens:
            while parts:
                arm.loop.bring(late.request, parts.pop(0))
            other.submit(arm.loop)

    arm.engine.on_decode = bring
    arm.while_it_runs(late)
    assert_whole(late.kv())
    assert other.kv() is not None
    for asked in (late, other):
        asked.assert_ended_once()
    trace = arm.engine.trace
    received = [i for i, what in enumerate(trace) if what == "receive"]
    assert len(received) == NUM_PIECES
    assert all({"decode", "prefill other"} & set(trace[i:j]) for i, j in itertools.pairwise(received))
    assert trace.index("begin other") < received[1], "who comes behind the KV does not wait for it"
    assert [i for i, what in enumerate(trace) if what == "arrived"] == [received[-1] + 1]


def test_kv_of_who_has_no_slot_yet_is_nothing_to_wait_for(make_arm: Callable[[int], Arm]) -> None:
    arm = make_arm(1)
    kv = Asked("cold", LONG, max_tokens=1).submit(arm.loop).kv()
    assert kv is not None
    late = arriving(kv)
    parts: list[KVSpan | None] = [*kv.spans, None]

    def bring() -> None:
        if parts:
            late.submit(arm.loop)
        while parts:
            arm.loop.bring(late.request, parts.pop(0))

    arm.engine.on_decode = bring
    Asked("stream", SHORT, max_tokens=2 * NUM_PIECES).submit(arm.loop)
    assert_whole(late.kv())
    late.assert_ended_once()
    trace = arm.engine.trace
    first = trace.index("receive")
    assert trace[first : first + NUM_PIECES] == ["receive"] * NUM_PIECES, "it is not copied yet"
    assert first < trace.index("begin late")


def test_a_failed_step_does_not_take_what_has_ended_with_it(make_arm: Callable[[int], Arm]) -> None:
    arm = make_arm(2)
    doomed = Asked("doomed", OTHER, max_tokens=200)
    doomed.request.restored = [KVSpan(torch.zeros(0), torch.zeros(0))]  # the engine cannot even look at it

    def ask(number: int) -> None:
        if number == 1:
            doomed.submit(arm.loop)

    arm.engine.on_piece = ask
    long = Asked("long", LONG, max_tokens=1).submit(arm.loop)
    assert_whole(long.kv())
    assert doomed.kv() is None
    long.assert_ended_once()
    doomed.assert_ended_once(RequestState.FAILED)


def test_stop_and_unload_wait_for_pieces(make_arm: Callable[[int], Arm]) -> None:
    arm = make_arm(1)
    stopping = threading.Thread(target=arm.loop.stop, args=(TIMEOUT_S,))

    def interrupt(number: int) -> None:
        if number == 1:
            arm.loop.unload()
        elif number == 2:
            assert arm.loop.model.state == "ready", "the slot is still read"
            stopping.start()
            while arm.loop._inbox._queue.empty():
                pass

    arm.engine.on_piece = interrupt
    long = Asked("long", LONG, max_tokens=1).submit(arm.loop)
    assert_whole(long.kv())
    stopping.join(TIMEOUT_S)
    assert not arm.loop.is_alive
    assert arm.loop.model.state == "unloaded"
    long.assert_ended_once()


def test_what_was_cancelled_behind_its_prompt_leaves_its_kv_too(make_arm: Callable[[int], Arm]) -> None:
    arm = make_arm(1)
    long = Asked("long", LONG, max_tokens=200)

    def publish(event: Event) -> None:
        long._publish(event)
        long.request.cancel_requested = True

    long.request.publish = publish
    long.submit(arm.loop)
    assert_whole(long.kv())
    long.assert_ended_once(RequestState.CANCELLED)
