"""The engine thread with a real tiny model: every request ends once, failures stay theirs, memory comes and goes."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from semcache.daemon.cache.admit import PromptKV
from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import Engine, Together
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.inbox import Command, Inbox, Submit
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import CacheOptions, End, Event, Message, Request, RequestState, Sampling, Token
from semcache.daemon.resident import Progress
from semcache.errors import EngineError, ModelLoadError, RequestTimeoutError, SemcacheError, UnavailableError
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import load, save_model

TIMEOUT_S = 60


class BrokenEngine(Engine):
    """Fails in the decode step for as long as `broken` is set, and waits in it for as long as `gate` is closed."""

    broken = False
    cannot_clear = False
    no_room_for_kv = False
    num_shared = 0  # passes of several kinds
    could_share = False
    gate = threading.Event()
    gate.set()

    def __init__(self, loaded: LoadedModel, *, num_slots: int, prefill_chunk_tokens: int) -> None:
        super().__init__(loaded, num_slots=num_slots, prefill_chunk_tokens=prefill_chunk_tokens)
        BrokenEngine.could_share = self.joins
        clear = self._pool.clear

        def clear_if_it_can(slot: int, start: int, stop: int) -> None:
            if self.cannot_clear:
                raise RuntimeError("device-side assert triggered")
            clear(slot, start, stop)

        self._pool.clear = clear_if_it_can  # type: ignore[method-assign]

    def kv(self, request: Request, start: int, stop: int) -> KVSpan:
        if self.no_room_for_kv:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().kv(request, start, stop)

    def decode(self, requests: Sequence[Request]) -> list[int | None]:
        self._step()
        return super().decode(requests)

    def together(
        self, prefills: Sequence[Request], drafted: Sequence[tuple[Request, Proposal]], decodes: Sequence[Request]
    ) -> Together | None:
        if decodes:
            self._step()
        found = super().together(prefills, drafted, decodes)
        BrokenEngine.num_shared += found is not None
        return found

    def _step(self) -> None:
        assert self.gate.wait(TIMEOUT_S)
        if self.broken:
            raise RuntimeError("the card fell out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def make_loop(folder: Path) -> Iterator[Callable[..., EngineLoop]]:
    loops: list[EngineLoop] = []

    def make(*, error: SemcacheError | None = None, num_slots: int = 2, keep_alive_s: float = 0) -> EngineLoop:
        def load_engine(progress: Progress) -> Engine:
            progress("weights", 0.5)
            if error is not None:
                raise error
            return BrokenEngine(load(folder), num_slots=num_slots, prefill_chunk_tokens=16)

        loop = EngineLoop(load_engine, keep_alive_s=keep_alive_s)
        loops.append(loop)
        loop.start()
        return loop

    yield make
    BrokenEngine.gate.set()
    BrokenEngine.no_room_for_kv = False
    for loop in loops:
        loop.stop(TIMEOUT_S)


class Asked:
    """A request with its events and what was handed over."""

    def __init__(self, prompt: str = "hello there", *, max_tokens: int = 8, user: str = "os:1", **fields: Any) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.handed: queue.SimpleQueue[PromptKV | None] = queue.SimpleQueue()
        self.request = Request(
            id=f"{prompt}-{id(self)}", user=user, model="m", messages=(Message("user", prompt),),
            prompt_tokens=list(prompt.encode()), sampling=Sampling(max_tokens=max_tokens), options=CacheOptions(),
            publish=self.events.put, **fields,
        )  # fmt: skip

    def submit(self, loop: EngineLoop) -> Asked:
        loop.submit(self.request, lambda _request, kv: self.handed.put(kv), loop.served)
        return self

    def end(self) -> End:
        while True:
            event = self.events.get(timeout=TIMEOUT_S)
            if isinstance(event, End):
                return event

    def first_token(self) -> None:
        while not isinstance(self.events.get(timeout=TIMEOUT_S), Token):
            pass

    def kv(self) -> PromptKV | None:
        return self.handed.get(timeout=TIMEOUT_S)


def test_more_requests_than_slots_all_finish_and_hand_their_prompt_over(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop()
    asked = [Asked(f"prompt number {i}", user=f"os:1/{i % 3}").submit(loop) for i in range(7)]
    assert [a.end().state for a in asked] == [RequestState.FINISHED] * 7
    for a in asked:
        kv = a.kv()
        assert kv is not None
        assert sum(span.num_tokens for span in kv.spans) == a.request.num_prompt_tokens
        assert kv.logits.shape == (272,)
    assert loop.num_running == loop.num_waiting == 0


def test_the_same_prompt_gives_the_same_answer_in_any_company(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=4)
    alone = Asked("in company").submit(loop)
    alone.end()
    crowd = [Asked(text).submit(loop) for text in ("in company", "another much longer prompt", "x")]
    assert [a.end().state for a in crowd] == [RequestState.FINISHED] * 3
    assert crowd[0].request.output_tokens == alone.request.output_tokens


def test_what_is_handed_over_has_the_same_bits_in_any_company(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=4)
    texts = [f"{i} " * (3 + 7 * i) for i in range(10)]  # less than a chunk, and up to nine
    alone = [Asked(text).submit(loop).kv() for text in texts]
    BrokenEngine.num_shared = 0
    BrokenEngine.gate.clear()
    first = Asked("somebody who streams", max_tokens=60).submit(loop)
    first.first_token()
    crowd = [Asked(text, user=f"os:1/{i % 2}").submit(loop) for i, text in enumerate(texts)]
    BrokenEngine.gate.set()
    for asked, expected in zip(crowd, alone, strict=True):
        kv = asked.kv()
        assert kv is not None
        assert expected is not None
        assert torch.equal(kv.logits, expected.logits)
        for ours, theirs in zip(kv.spans, expected.spans, strict=True):
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)
    assert BrokenEngine.num_shared or not BrokenEngine.could_share


def test_cancel_ends_before_the_next_step_and_frees_the_slot(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=1)
    BrokenEngine.gate.clear()
    endless = Asked(max_tokens=200).submit(loop)
    waiting = Asked("next").submit(loop)
    endless.first_token()
    loop.cancel(endless.request)
    BrokenEngine.gate.set()
    assert endless.end().state is RequestState.CANCELLED
    assert len(endless.request.output_tokens) <= 2  # the step that ran when it was cancelled, and none after it
    assert waiting.end().state is RequestState.FINISHED


def test_a_cancel_with_an_error_ends_as_failed(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop()
    BrokenEngine.gate.clear()
    late = Asked(max_tokens=200).submit(loop)
    late.first_token()
    loop.cancel(late.request, RequestTimeoutError("too late"))
    BrokenEngine.gate.set()
    end = late.end()
    assert end.state is RequestState.FAILED
    assert isinstance(end.error, RequestTimeoutError)


def test_a_failing_step_ends_its_requests_and_no_others(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop()
    Asked().submit(loop).end()
    BrokenEngine.broken = True
    try:
        failed = Asked("fails").submit(loop)
        end = failed.end()
    finally:
        BrokenEngine.broken = False
    assert end.state is RequestState.FAILED
    assert isinstance(end.error, EngineError)
    assert "the card fell out" in end.error.message
    assert failed.kv() is None
    assert loop.num_failures == 1
    assert loop.is_alive
    assert Asked("works again").submit(loop).end().state is RequestState.FINISHED


def test_a_slot_that_cannot_be_cleared_keeps_nobody_waiting(
    make_loop: Callable[..., EngineLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error that every later call to the card repeats."""
    loop = make_loop(num_slots=2)
    BrokenEngine.gate.clear()
    asked = [Asked(f"p{i}", max_tokens=200).submit(loop) for i in range(3)]
    asked[0].first_token()
    monkeypatch.setattr(BrokenEngine, "broken", True)
    monkeypatch.setattr(BrokenEngine, "cannot_clear", True)
    BrokenEngine.gate.set()
    assert [a.end().state for a in asked] == [RequestState.FAILED] * 3
    assert [a.kv() for a in asked] == [None] * 3
    monkeypatch.undo()
    assert [Asked(f"q{i}").submit(loop).end().state for i in range(3)] == [RequestState.FINISHED] * 3
    assert loop.is_alive


def test_who_does_not_end_well_keeps_no_other_waiting(
    make_loop: Callable[..., EngineLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(num_slots=3)
    BrokenEngine.gate.clear()
    deaf, other = [Asked(f"deaf {i}", max_tokens=200) for i in range(2)], Asked("other", max_tokens=200)

    def hand_over(_request: Request, _kv: PromptKV | None) -> None:
        raise RuntimeError("Event loop is closed")

    for asked in deaf:
        loop.submit(asked.request, hand_over, loop.served)
    other.submit(loop)
    deaf[0].first_token()
    monkeypatch.setattr(BrokenEngine, "broken", True)
    BrokenEngine.gate.set()
    assert [asked.end().state for asked in (*deaf, other)] == [RequestState.FAILED] * 3
    assert other.kv() is None
    monkeypatch.undo()
    assert Asked().submit(loop).end().state is RequestState.FINISHED


def test_kv_that_cannot_be_copied_is_not_kept_and_nothing_else_happens(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop()
    BrokenEngine.no_room_for_kv = True
    finished = Asked().submit(loop)
    assert finished.end().state is RequestState.FINISHED
    assert finished.kv() is None
    cancelled = Asked(max_tokens=200).submit(loop)
    cancelled.first_token()
    loop.cancel(cancelled.request)
    assert cancelled.end().state is RequestState.CANCELLED
    assert cancelled.kv() is None
    BrokenEngine.no_room_for_kv = False
    after = Asked().submit(loop)
    assert after.end().state is RequestState.FINISHED
    assert after.kv() is not None
    assert loop.num_failures == 2


def test_numbers_that_are_none_end_one_request_and_no_other(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=3)
    BrokenEngine.gate.clear()
    well = Asked(max_tokens=20).submit(loop)
    well.first_token()
    nan = torch.full((2, 2, 16, 16), float("nan"))
    ill = Asked("x" * 17, restored=[KVSpan(nan, nan)], num_restored=16).submit(loop)
    # Its first token comes from stored logits, so that only the decode step that it shares meets the KV.
    late = Asked("x" * 16, restored=[KVSpan(nan, nan)], num_restored=16, prompt_logits=torch.zeros(272)).submit(loop)
    BrokenEngine.gate.set()
    assert [asked.end().state for asked in (well, ill, late)] == [
        RequestState.FINISHED, RequestState.FAILED, RequestState.FAILED,
    ]  # fmt: skip
    assert "NaN" in str(ill.request.error)
    assert "NaN" in str(late.request.error)
    assert loop.num_failures == 0


def test_numbers_that_are_none_do_not_stay_in_a_slot(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=2)
    nan = torch.full((2, 2, 32, 16), float("nan"))
    ill = Asked("x" * 33, restored=[KVSpan(nan, nan)], num_restored=32).submit(loop)
    assert ill.end().state is RequestState.FAILED
    # The short one gets its slot, and is read as far as the long one beside it.
    BrokenEngine.gate.clear()
    short, long = Asked("z", max_tokens=8).submit(loop), Asked("y" * 30, max_tokens=8).submit(loop)
    BrokenEngine.gate.set()
    assert [asked.end().state for asked in (short, long)] == [RequestState.FINISHED] * 2


def test_kv_of_another_model_is_refused_alone(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop()
    other = torch.zeros(3, 2, 16, 16)
    refused = Asked("x" * 17, restored=[KVSpan(other, other)], num_restored=16).submit(loop)
    assert refused.end().state is RequestState.FAILED
    assert "not of this model" in str(refused.request.error)
    assert Asked().submit(loop).end().state is RequestState.FINISHED
    assert loop.num_running == 0


def test_an_unload_waits_for_what_runs(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=1)
    BrokenEngine.gate.clear()
    running = Asked(max_tokens=20).submit(loop)
    running.first_token()
    waiting = Asked("next").submit(loop)
    loop.unload()
    BrokenEngine.gate.set()
    assert [asked.end().state for asked in (running, waiting)] == [RequestState.FINISHED] * 2
    left = queue.SimpleQueue[str]()
    loop._resident._on_change = lambda: left.put(loop.model.state)
    if loop.model.state != "unloaded":
        assert left.get(timeout=TIMEOUT_S) == "unloaded"


def test_a_model_that_cannot_load_fails_every_request_with_the_reason(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(error=ModelLoadError("no weights here"))
    end = Asked().submit(loop).end()
    assert end.state is RequestState.FAILED
    assert end.error is not None
    assert end.error.message == "no weights here"
    assert loop.model.state == "failed"


class Weights:
    """Something large."""


def test_a_failed_load_fails_all_who_wait_for_it_and_keeps_nothing() -> None:
    is_loading, gate = threading.Event(), threading.Event()
    loaded: list[weakref.ref[Weights]] = []

    def load_engine(_progress: Progress) -> Engine:
        weights = Weights()
        loaded.append(weakref.ref(weights))
        is_loading.set()
        assert gate.wait(TIMEOUT_S)
        try:
            raise MemoryError
        except MemoryError as error:
            raise ModelLoadError("no room for the weights") from error

    loop = EngineLoop(load_engine)
    loop.start()
    try:
        asked = [Asked("first").submit(loop)]
        assert is_loading.wait(TIMEOUT_S)
        asked += [Asked(f"p{i}").submit(loop) for i in range(3)]
        gate.set()
        assert [a.end().state for a in asked] == [RequestState.FAILED] * 4
        assert [str(a.request.error) for a in asked] == ["no room for the weights"] * 4
        assert [weights() for weights in loaded] == [None]
        while len(loaded) == 1:  # who comes when all of them have been told tries again
            assert Asked("later").submit(loop).end().state is RequestState.FAILED
    finally:
        loop.stop(TIMEOUT_S)


def test_a_load_takes_an_unload_back(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=1)
    BrokenEngine.gate.clear()
    running = Asked(max_tokens=20).submit(loop)
    running.first_token()
    loop.unload()
    loop.load()
    states: list[str] = []
    loop._resident._on_change = lambda: states.append(loop.model.state)
    BrokenEngine.gate.set()
    assert running.kv() is not None
    for i in range(3):
        assert Asked(f"p{i}").submit(loop).kv() is not None
    assert states == []


def test_a_model_that_leaves_with_an_error_is_loaded_again(
    make_loop: Callable[..., EngineLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop()
    assert Asked().submit(loop).kv() is not None

    def close(_engine: Engine) -> None:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(BrokenEngine, "close", close)
    left = queue.SimpleQueue[str]()
    loop._resident._on_change = lambda: left.put(loop.model.state)
    loop.unload()
    assert left.get(timeout=TIMEOUT_S) == "unloaded"
    monkeypatch.undo()
    assert Asked().submit(loop).end().state is RequestState.FINISHED


def test_an_idle_model_leaves_memory_and_comes_back(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(keep_alive_s=0.01)
    first = Asked("again").submit(loop)
    assert first.end().state is RequestState.FINISHED
    unloaded = queue.SimpleQueue[str]()
    loop._resident._on_change = lambda: unloaded.put(loop.model.state)
    while unloaded.get(timeout=TIMEOUT_S) != "unloaded":
        pass
    assert loop.served is not None  # enough stays to find stored answers
    second = Asked("again").submit(loop)
    assert second.end().state is RequestState.FINISHED
    assert second.request.output_tokens == first.request.output_tokens


def test_stop_ends_what_is_left(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=1)
    asked = [Asked(f"p{i}", max_tokens=200).submit(loop) for i in range(3)]
    asked[0].first_token()
    loop.stop(TIMEOUT_S)
    ends = [a.end() for a in asked]
    assert all(end.state in (RequestState.FAILED, RequestState.FINISHED) for end in ends)
    assert any(isinstance(end.error, UnavailableError) for end in ends)
    assert not loop.is_alive


def test_who_comes_behind_a_stop_is_told(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=1)
    BrokenEngine.gate.clear()
    running = Asked(max_tokens=200).submit(loop)
    running.first_token()
    stopping = threading.Thread(target=loop.stop, args=(TIMEOUT_S,))
    stopping.start()
    while loop._inbox._queue.empty():
        pass
    behind = Asked("behind").submit(loop)
    BrokenEngine.gate.set()
    stopping.join()
    late = Asked("late").submit(loop)
    for asked in (running, behind, late):
        assert isinstance(asked.end().error, UnavailableError)
        assert asked.handed.get(timeout=TIMEOUT_S) is None or asked is running
    assert loop.num_waiting == 0


@pytest.mark.parametrize("keep_alive_s", [0, 1000])
def test_nothing_is_done_while_all_wait_for_kv(
    make_loop: Callable[..., EngineLoop], monkeypatch: pytest.MonkeyPatch, keep_alive_s: float
) -> None:
    """The engine's thread waits for the next message, whoever has no slot yet and whatever is to happen later."""
    logits = torch.zeros(272)
    arriving = Asked("x" * 16, num_restored=16, prompt_logits=logits, is_arriving=True, max_tokens=200)
    looks: queue.SimpleQueue[tuple[bool, float | None]] = queue.SimpleQueue()
    get = Inbox.get

    def watched(inbox: Inbox, *, block: bool, timeout_s: float | None = None) -> Submit | Command | None:
        if arriving.request.output_tokens:
            looks.put((block, timeout_s))
        return get(inbox, block=block, timeout_s=timeout_s)

    monkeypatch.setattr(Inbox, "get", watched)
    loop = make_loop(num_slots=1, keep_alive_s=keep_alive_s)
    arriving.submit(loop)
    took_all, waits = (False, None), (True, None)
    assert looks.get(timeout=TIMEOUT_S) == waits
    waiting = Asked("next")
    for say in (lambda: waiting.submit(loop), lambda: loop.offer(arriving.request, []), loop.unload):
        say()
        assert [looks.get(timeout=TIMEOUT_S) for _ in range(2)] == [took_all, waits]
    assert looks.empty()
    loop.cancel(arriving.request)
    assert arriving.end().state is RequestState.CANCELLED
    assert waiting.end().state is RequestState.FINISHED


def test_only_requests_wait(make_loop: Callable[..., EngineLoop]) -> None:
    loop = make_loop(num_slots=1)
    BrokenEngine.gate.clear()
    running = Asked(max_tokens=200).submit(loop)
    running.first_token()
    for _ in range(5):
        loop.bring(running.request, None)
        loop.offer(running.request, [])
    assert loop.num_waiting == 0
    Asked("waits").submit(loop)
    assert loop.num_waiting == 1


def test_logits_are_ordinary_tensors(make_loop: Callable[..., EngineLoop]) -> None:
    asked = Asked().submit(make_loop())
    asked.end()
    kv = asked.kv()
    assert kv is not None
    assert not kv.logits.is_inference()
    assert torch.isfinite(kv.logits).all()
