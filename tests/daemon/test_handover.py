"""What an ended request hands over: its prompt's KV, and in `rounding` the answer's too, as far as it was computed."""

from __future__ import annotations

import itertools
import queue
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from semcache.config import Exactness
from semcache.daemon.cache.admit import PromptKV, cut
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import CacheMode, CacheOptions, Message, Request, RequestState, Sampling, Token
from tests.daemon.engine.conftest import CHUNK_TOKENS, load, random_prompt, save_model

TIMEOUT_S = 60
PROMPT = random_prompt(random.Random(1), 2 * CHUNK_TOKENS + 5)
MakeArm = Callable[..., "Arm"]


class Arm:
    """An engine on its thread."""

    def __init__(
        self, loaded: LoadedModel, exactness: Exactness, eos: tuple[int, ...] = (), block_tokens: int = 64
    ) -> None:
        model = replace(loaded, info=replace(loaded.info, eos_token_ids=eos))
        self.engine = Engine(model, num_slots=2, prefill_chunk_tokens=CHUNK_TOKENS, exactness=exactness)
        self.loop = EngineLoop(lambda _progress: self.engine, drafts=False, block_tokens=block_tokens)
        self.loop.start()

    def ask(
        self, prompt: list[int], *, cancel_at: int = 0, on_token: Callable[[], object] = lambda: None, **fields: Any
    ) -> tuple[Request, PromptKV | None]:
        """A request that was run to its end, and what it left."""
        handed: queue.SimpleQueue[PromptKV | None] = queue.SimpleQueue()
        options, sampling = fields.pop("options", CacheOptions()), fields.pop("sampling", Sampling(max_tokens=12))

        def publish(event: object) -> None:
            if isinstance(event, Token):
                on_token()
            if cancel_at and len(request.output_tokens) == cancel_at:
                request.cancel_requested = True

        request = Request(
            id=f"r{id(handed)}", user="os:1", model="m", messages=(Message("user", "?"),), prompt_tokens=prompt,
            sampling=sampling, options=options, publish=publish, **fields,
        )  # fmt: skip
        fields.clear()  # what was restored belongs to the request alone
        self.loop.submit(request, lambda _request, kv: handed.put(kv), self.loop.served)
        return request, handed.get(timeout=TIMEOUT_S)

    def computed(self, tokens: list[int]) -> PromptKV:
        """KV of these tokens by prefill."""
        kv = self.ask(tokens, sampling=Sampling(max_tokens=1))[1]
        assert kv is not None
        return kv


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(save_model(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def make_arm(llama: LoadedModel) -> Iterator[MakeArm]:
    arms: list[Arm] = []

    def make(exactness: Exactness, **options: Any) -> Arm:
        arms.append(Arm(llama, exactness, **options))
        return arms[-1]

    yield make
    for arm in arms:
        arm.loop.stop(TIMEOUT_S)


def num_tokens(kv: PromptKV | None) -> int:
    assert kv is not None
    return sum(span.num_tokens for span in kv.spans)


def assert_is_of(kv: PromptKV | None, tokens: list[int], arm: Arm) -> None:
    """The KV is of exactly these tokens, but for the last bits."""
    assert kv is not None
    assert num_tokens(kv) == len(tokens)
    ours, theirs = cut(kv.spans, 0, len(tokens)), cut(arm.computed(tokens).spans, 0, len(tokens))
    assert torch.allclose(ours.keys, theirs.keys, atol=1e-4)
    assert torch.allclose(ours.values, theirs.values, atol=1e-4)


def test_in_bitwise_only_the_prompt_is_handed_over(make_arm: MakeArm) -> None:
    assert num_tokens(make_arm("bitwise").ask(PROMPT)[1]) == len(PROMPT)


def test_an_answer_is_handed_over_as_far_as_it_was_computed(make_arm: MakeArm) -> None:
    arm = make_arm("rounding")
    cut_off, kv = arm.ask(PROMPT)
    assert cut_off.finish_reason == "length"
    assert_is_of(kv, [*PROMPT, *cut_off.output_tokens[:-1]], arm)  # no step took the last one
    one, kv = arm.ask(PROMPT, sampling=Sampling(max_tokens=1))
    assert len(one.output_tokens) == 1
    assert num_tokens(kv) == len(PROMPT)
    left, kv = arm.ask(PROMPT, cancel_at=4)
    assert (left.state, len(left.output_tokens)) == (RequestState.CANCELLED, 4)
    assert_is_of(kv, [*PROMPT, *left.output_tokens[:-1]], arm)
    # The token that ends an answer is no part of it, and every other one was a step's input.
    ends = make_arm("rounding", eos=(cut_off.output_tokens[6],))
    stopped, kv = ends.ask(PROMPT)
    assert stopped.finish_reason == "stop"
    assert stopped.output_tokens == cut_off.output_tokens[: cut_off.output_tokens.index(cut_off.output_tokens[6])]
    assert_is_of(kv, [*PROMPT, *stopped.output_tokens], arm)


def test_who_is_cancelled_inside_its_prompt_hands_nothing_over(make_arm: MakeArm) -> None:
    arm = make_arm("bitwise")
    prefill = arm.engine.prefill

    def cancel_behind_two_chunks(request: Request, *, max_chunks: int) -> int | None:
        token = prefill(request)
        request.cancel_requested = request.num_computed == 2 * CHUNK_TOKENS
        return token

    arm.engine.prefill = cancel_behind_two_chunks
    request, kv = arm.ask(PROMPT)
    assert (request.state, request.num_computed) == (RequestState.CANCELLED, 2 * CHUNK_TOKENS)
    assert kv is None
    assert (arm.loop.num_failures, arm.engine.num_free_slots) == (0, arm.engine.num_slots)
    pool = arm.engine._pool
    assert all(tensor.isfinite().all() for tensor in (*pool.keys, *pool.values))


def test_what_was_restored_is_handed_over_with_the_rest(make_arm: MakeArm) -> None:
    arm = make_arm("rounding")
    cold, kv = arm.ask(PROMPT)
    assert kv is not None
    for num_restored in (1, 17, len(PROMPT) - 1):
        spans = [cut(kv.spans, 0, num_restored)]
        warm, warm_kv = arm.ask(PROMPT, restored=spans, num_restored=num_restored)
        assert warm.output_tokens == cold.output_tokens
        assert_is_of(warm_kv, [*PROMPT, *warm.output_tokens[:-1]], arm)
    whole = {"restored": [cut(kv.spans, 0, len(PROMPT))], "num_restored": len(PROMPT)}
    warm, warm_kv = arm.ask(PROMPT, **whole, prompt_logits=kv.logits.clone())
    assert warm.output_tokens == cold.output_tokens
    assert_is_of(warm_kv, [*PROMPT, *warm.output_tokens[:-1]], arm)


@pytest.mark.parametrize("exactness", ["bitwise", "rounding"])
def test_what_is_stored_already_is_not_copied_again(make_arm: MakeArm, exactness: Exactness) -> None:
    size = CHUNK_TOKENS // 2
    arm = make_arm(exactness, block_tokens=size)
    _, cold = arm.ask(PROMPT)
    assert cold is not None
    logits = cold.logits.clone()
    cuts = {CHUNK_TOKENS: CHUNK_TOKENS, 2 * CHUNK_TOKENS: 2 * CHUNK_TOKENS, len(PROMPT): 2 * CHUNK_TOKENS}
    if exactness == "rounding":
        cuts[size + 3] = size  # the block that was cut is another one now, and all of it is needed
    for num_stored, first in cuts.items():
        known = {"restored": [cut(cold.spans, 0, num_stored)], "num_restored": num_stored, "num_stored": num_stored}
        warm, kv = arm.ask(PROMPT, **known, prompt_logits=logits.clone() if num_stored == len(PROMPT) else None)
        assert kv is not None
        num_covered = len(PROMPT) + (len(warm.output_tokens) - 1 if exactness == "rounding" else 0)
        assert (kv.first_token, kv.num_tokens) == (first, num_covered)
        for at in range(first, len(PROMPT)):
            assert torch.equal(kv.part(at, at + 1).keys, cold.part(at, at + 1).keys) or exactness == "rounding"
    whole = random_prompt(random.Random(3), 2 * CHUNK_TOKENS)
    _, cold = arm.ask(whole, sampling=Sampling(max_tokens=1))
    assert cold is not None
    known = {"restored": list(cold.spans), "num_restored": len(whole), "num_stored": len(whole)}
    _, kv = arm.ask(whole, **known, prompt_logits=cold.logits.clone(), sampling=Sampling(max_tokens=1))
    assert kv is not None
    assert (kv.first_token, kv.num_tokens) == (len(whole), len(whole))
    assert kv.part(len(whole), len(whole)).num_tokens == 0, "a record of it could be made all the same"


@pytest.mark.parametrize("has_logits", [False, True])
def test_restored_kv_is_let_go_once_it_lies_in_the_slot(make_arm: MakeArm, has_logits: bool) -> None:
    arm = make_arm("bitwise")
    _, cold = arm.ask(PROMPT)
    assert cold is not None
    logits = cold.logits.clone() if has_logits else None
    num_restored = len(PROMPT) if has_logits else CHUNK_TOKENS
    spans = [cut(cold.spans, 0, num_restored)]
    left, seen = weakref.ref(spans[0]), []
    arm.ask(
        PROMPT, restored=[spans.pop()], num_restored=num_restored, prompt_logits=logits,
        on_token=lambda: seen.append(left() is None),
    )  # fmt: skip
    # Stored logits give the first token before anything is copied.
    assert len(seen) > 2
    assert all(seen[1:])


@pytest.mark.parametrize("exactness", ["bitwise", "rounding"])
def test_every_block_is_a_span_that_keeps_nothing_else_in_memory(make_arm: MakeArm, exactness: Exactness) -> None:
    size = CHUNK_TOKENS // 2
    arm = make_arm(exactness, block_tokens=size)
    _, cold = arm.ask(PROMPT)
    assert cold is not None
    known = {"restored": [cut(cold.spans, 0, CHUNK_TOKENS)], "num_restored": CHUNK_TOKENS, "num_stored": CHUNK_TOKENS}
    _, warm = arm.ask(PROMPT, **known)
    assert warm is not None
    for kv in (cold, warm):
        ends = list(itertools.accumulate((span.num_tokens for span in kv.spans), initial=kv.first_token))[1:]
        assert ends == [*range(kv.first_token + size, kv.num_tokens, size), kv.num_tokens]
        for span in kv.spans:
            assert span.keys.untyped_storage().nbytes() == span.keys.nbytes


@pytest.mark.parametrize("options", [CacheOptions(no_store=True), CacheOptions(mode=CacheMode.OFF)])
def test_nothing_is_handed_over_that_is_not_to_be_stored(make_arm: MakeArm, options: CacheOptions) -> None:
    request, kv = make_arm("rounding").ask(PROMPT, options=options)
    assert request.state is RequestState.FINISHED
    assert kv is None


def test_an_answer_costs_what_a_long_prefill_would_take_for_it(make_arm: MakeArm) -> None:
    arm = make_arm("rounding")
    assert arm.loop.prefill_ms_per_token is None
    long = random_prompt(random.Random(2), 100)
    _, kv = arm.ask(long)
    speed = arm.loop.prefill_ms_per_token
    assert kv is not None
    assert speed is not None
    assert kv.prefill_ms_per_token == speed
    whole = {"restored": [cut(kv.spans, 0, 100)], "num_restored": 100, "prompt_logits": kv.logits.clone()}
    for fields in (whole, {"restored": [cut(kv.spans, 0, 99)], "num_restored": 99}):
        _, warm = arm.ask(long, **fields)
        assert warm is not None
        assert warm.prefill_ms_per_token == speed > 0
    assert arm.loop.prefill_ms_per_token == speed
