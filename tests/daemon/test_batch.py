"""Who shares a pass, and who gets one over several chunks: a lone prompt, and nobody whom others wait for."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from semcache.daemon.batch import Batch
from semcache.daemon.drafts import Drafts
from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import MAX_CHUNKS, Engine, Together
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.work import PromptWork
from semcache.daemon.handover import Handovers
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import Donor, Request, RequestState, Sampling
from semcache.daemon.resident import Resident
from semcache.daemon.scheduler import Scheduler
from semcache.errors import EngineError
from tests.daemon.engine.conftest import (
    CHUNK_TOKENS,
    generate,
    load,
    random_prompt,
    request_for,
    restored_request,
    save_model,
    start,
)

TIMEOUT_S = 60


class Watched(Engine):
    """Writes down each pass: how many chunks of a lone prompt it may take, and who shares it otherwise.

    `on_begin` is called before a request begins.
    """

    def __init__(
        self, loaded: LoadedModel, *, num_slots: int, joins: bool = True, on_begin: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(loaded, num_slots=num_slots, prefill_chunk_tokens=CHUNK_TOKENS)
        self.joins = self.joins and joins
        self.max: list[int] = []
        self.shared: list[tuple[int, int, int]] = []
        self.on_begin = on_begin

    def begin(self, request: Request) -> None:
        self.on_begin()
        super().begin(request)

    def prefill(self, request: Request, *, max_chunks: int = 1) -> int | None:
        self.max.append(max_chunks)
        return super().prefill(request)

    def together(
        self, prefills: Sequence[Request], drafted: Sequence[tuple[Request, Proposal]], decodes: Sequence[Request]
    ) -> Together | None:
        found = super().together(prefills, drafted, decodes)
        if found is not None:
            self.shared.append((len(prefills), len(drafted), len(decodes)))
        return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save_model(tmp_path_factory.mktemp("models") / "llama"))


def long_request(**fields: Any) -> Request:
    return request_for(random_prompt(random.Random(1), 8 * CHUNK_TOKENS), **fields)


def batch_over(engine: Engine, *, drafts: bool = False) -> tuple[Batch, Scheduler]:
    """Nobody is on the way."""
    resident = Resident(lambda _progress: engine, on_change=lambda: None, keep_alive_s=0, clock=time.monotonic)
    resident.load()
    scheduler = Scheduler(engine.num_slots, engine.prefill_chunk_tokens if engine.joins else None)
    batch = Batch(
        resident, scheduler, Handovers(block_tokens=64, piece_bytes=1), Drafts(enabled=drafts),
        time.monotonic, is_awaited=lambda: False, piece_bytes=1,
    )  # fmt: skip
    return batch, scheduler


def passes(loaded: LoadedModel, requests: list[Request], *, num_slots: int, num_steps: int) -> list[int]:
    """How many chunks each pass may take where these requests are there from the start, and passes are not shared."""
    engine = Watched(loaded, num_slots=num_slots, joins=False)
    batch, _ = batch_over(engine)
    for request in requests:
        batch.add(request, lambda _request, _kv: None)
    for _ in range(num_steps):
        batch.step()
    assert batch.num_failures == 0
    return engine.max


def test_a_lone_prompt_may_take_several_chunks_at_once(loaded: LoadedModel) -> None:
    assert passes(loaded, [long_request()], num_slots=2, num_steps=3) == [MAX_CHUNKS] * 3


def test_not_where_somebody_waits(loaded: LoadedModel) -> None:
    assert passes(loaded, [long_request(), long_request()], num_slots=1, num_steps=3) == [1] * 3


def test_not_where_somebody_else_runs(loaded: LoadedModel) -> None:
    """From the second step on nobody waits any more."""
    assert passes(loaded, [long_request(), long_request()], num_slots=2, num_steps=3) == [1] * 3


def test_not_in_idle_time(loaded: LoadedModel) -> None:
    assert passes(loaded, [long_request(gives_way=True)], num_slots=2, num_steps=3) == [1] * 3


def test_not_where_somebody_is_on_the_way(loaded: LoadedModel) -> None:
    """Whoever comes since the inbox was looked at."""
    handed: queue.SimpleQueue[Request] = queue.SimpleQueue()
    late = [long_request()]

    def ask_once() -> None:
        while late:
            loop.submit(late.pop(), lambda request, _kv: handed.put(request), loop.served)

    engine = Watched(loaded, num_slots=1, on_begin=ask_once)
    loop = EngineLoop(lambda _progress: engine, drafts=False)
    loop.start()
    try:
        loop.submit(long_request(), lambda request, _kv: handed.put(request), None)
        for _ in range(2):
            handed.get(timeout=TIMEOUT_S)
    finally:
        loop.stop(TIMEOUT_S)
    assert (engine.max[0], engine.max[-1]) == (1, MAX_CHUNKS)


def test_prompts_share_a_pass_and_then_each_shares_one_with_the_streams(loaded: LoadedModel) -> None:
    engine = Watched(loaded, num_slots=4)
    if not engine.joins:
        pytest.skip("this machine's kernels depend on the number of rows")
    batch, scheduler = batch_over(engine)
    rng = random.Random(1)
    short, long = random_prompt(rng, 5), random_prompt(rng, 3 * CHUNK_TOKENS)
    requests = [request_for(short), request_for(short), request_for(long)]
    for request in requests:
        batch.add(request, lambda _request, _kv: None)
    batch.step()
    assert engine.shared == [(3, 0, 0)]
    assert [len(request.output_tokens) for request in requests] == [1, 1, 0]
    for _ in range(2):
        batch.step()
    assert engine.shared[1:] == [(1, 0, 2)] * 2
    assert [len(request.output_tokens) for request in requests] == [3, 3, 1]
    batch.step()
    assert engine.shared[3:] == []
    assert [len(request.output_tokens) for request in requests] == [4, 4, 2]
    assert not scheduler._prefilling
    assert batch.num_failures == 0


@pytest.mark.parametrize("refused", ["behind the pass", "before it"])
def test_what_one_prompt_is_refused_for_ends_no_other_in_its_pass(
    refused: str, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that are no numbers, or KV that does not fit on the device any more."""
    engine = Watched(loaded, num_slots=2)
    if not engine.joins:
        pytest.skip("this machine's kernels depend on the number of rows")
    batch, _ = batch_over(engine)
    bad, good = request_for([7] * 5), request_for([8] * 5)
    first_token, chunk = engine.first_token, engine._chunk

    def spoilt(request: Request) -> int | None:
        if request is bad and request.is_prompt_computed:
            request.prompt_logits = torch.full((engine.info.vocab_size,), float("nan"))
        return first_token(request)

    def without_room(request: Request, max_chunks: int) -> PromptWork:
        if request is bad:
            raise EngineError("no room")
        return chunk(request, max_chunks)

    if refused == "behind the pass":
        monkeypatch.setattr(engine, "first_token", spoilt)
    else:
        monkeypatch.setattr(engine, "_chunk", without_room)
    for request in (bad, good):
        batch.add(request, lambda _request, _kv: None)
    batch.step()
    assert engine.shared == ([(2, 0, 0)] if refused == "behind the pass" else [])
    assert bad.state is RequestState.FAILED
    assert good.state is RequestState.DECODING
    assert batch.num_failures == 0


def test_a_first_token_that_needs_no_pass_waits_for_none(loaded: LoadedModel) -> None:
    """Neither for the chunks of prompts that came before it nor for the tokens of streams."""
    engine = Watched(loaded, num_slots=3)
    prompt = random_prompt(random.Random(5), CHUNK_TOKENS)
    cold = start(engine, request_for(prompt))
    kv, logits = engine.kv(cold, 0, CHUNK_TOKENS), cold.prompt_logits
    engine.release(cold)
    batch, scheduler = batch_over(engine)
    known = restored_request(prompt, [kv], prompt_logits=logits)
    early, late = long_request(), long_request()
    num_passes = []
    known.publish = lambda event: num_passes.append((early.num_passes, late.num_passes))
    batch.add(early, lambda _request, _kv: None)
    batch.step()
    for request in (late, known):
        batch.add(request, lambda _request, _kv: None)
    batch.step()
    assert known.output_tokens[:1] == cold.output_tokens
    assert num_passes[0] == (1, 0)
    assert scheduler.has_streams


@pytest.mark.parametrize(("num_tokens", "at_once"), [(5, 2), (13, 1)])
def test_drafts_share_a_pass_as_far_as_a_chunk_goes(num_tokens: int, at_once: int, loaded: LoadedModel) -> None:
    engine = Watched(loaded, num_slots=2)
    if not engine.joins:
        pytest.skip("this machine's kernels depend on the number of rows")
    prompts = [random_prompt(random.Random(i), 6) for i in range(2)]
    donors = [
        Donor(tuple(generate(engine, [request_for(prompt)], num_tokens)[0]), has_ended=False) for prompt in prompts
    ]
    batch, _ = batch_over(engine, drafts=True)
    for prompt, donor in zip(prompts, donors, strict=True):
        request = request_for(prompt, Sampling(max_tokens=40))
        request.donor = donor
        batch.add(request, lambda _request, _kv: None)
    for _ in range(3):
        batch.step()
    drafted = [num for _, num, _ in engine.shared]
    assert engine.shared[0] == (2, 0, 0)
    assert (2 in drafted) == (at_once == 2)


def test_a_shared_pass_is_paid_for_by_the_row(loaded: LoadedModel) -> None:
    engine = Watched(loaded, num_slots=2)
    if not engine.joins:
        pytest.skip("this machine's kernels depend on the number of rows")
    batch, _ = batch_over(engine)
    few, many = request_for([7] * 5), request_for([8] * 15)
    for request in (few, many):
        batch.add(request, lambda _request, _kv: None)
    started = time.monotonic()
    batch.step()
    took_ms = (time.monotonic() - started) * 1e3
    paid = batch._handovers._prefill_ms
    assert engine.shared == [(2, 0, 0)]
    assert paid[many.id] == pytest.approx(3 * paid[few.id])
    assert 0 < paid[many.id] + paid[few.id] <= took_ms


def test_restoring_is_not_waited_for_more_than_once_a_step(loaded: LoadedModel) -> None:
    engine = Watched(loaded, num_slots=4)
    cold = start(engine, long_request())
    kv = engine.kv(cold, 0, CHUNK_TOKENS)
    engine.release(cold)
    batch, scheduler = batch_over(engine)
    warm = [restored_request(cold.prompt_tokens, [kv]) for _ in range(2)]
    for request in (long_request(), *warm):
        batch.add(request, lambda _request, _kv: None)
    batch.step()
    assert scheduler.num_waiting == 1, "one that brings KV, and those before it"
    batch.step()
    assert scheduler.num_waiting == 0


def test_one_at_a_time_gets_a_slot_where_somebody_streams(loaded: LoadedModel) -> None:
    batch, scheduler = batch_over(Watched(loaded, num_slots=4))
    batch.add(request_for([7] * 5, Sampling(max_tokens=100)), lambda _request, _kv: None)
    batch.step()
    assert scheduler.has_streams
    for _ in range(3):
        batch.add(long_request(), lambda _request, _kv: None)
    batch.step()
    assert scheduler.num_waiting == 2
