"""KV that arrives in parts: before and behind the first token, whole or not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from semcache.config import Exactness
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.request import Request
from semcache.errors import EngineError
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import CHUNK_TOKENS, assert_equal_kv, random_prompt, request_for, start

Loaded = Callable[..., LoadedModel]


def pieces_of(kv: KVSpan, num_tokens: int) -> list[KVSpan]:
    return [kv.slice(at, min(at + num_tokens, kv.num_tokens)) for at in range(0, kv.num_tokens, num_tokens)]


def arriving_request(prompt: list[int], logits: object) -> Request:
    return request_for(prompt, num_restored=len(prompt), prompt_logits=logits, is_arriving=True)


@pytest.mark.parametrize("num_early", [0, 1, 3, 5])
def test_kv_that_arrives_before_and_behind_the_first_token_is_that_of_the_prompt(
    engine: Engine, num_early: int
) -> None:
    prompt = random_prompt(random.Random(8), 2 * CHUNK_TOKENS + 5)
    first = start(engine, request_for(prompt))
    kv = engine.kv(first, 0, first.num_prompt_tokens)
    parts = pieces_of(kv, 7)
    warm = arriving_request(prompt, first.prompt_logits)
    assert not any(engine.receive(warm, part) for part in parts[:num_early])
    start(engine, warm)
    assert warm.num_passes == 0
    assert [engine.receive(warm, part) for part in parts[num_early:]] == [False] * (len(parts) - num_early - 1) + [True]
    assert engine.settle(warm)
    assert (warm.is_arriving, warm.num_restored) == (False, len(prompt))
    assert_equal_kv(engine.kv(warm, 0, warm.num_prompt_tokens), kv)
    for _ in range(4):
        for request in (first, warm):
            request.emit(engine.decode([request]), "")
    assert warm.output_tokens == first.output_tokens


@pytest.mark.parametrize("exactness", ["bitwise", "rounding"])
@pytest.mark.parametrize("begins", ["before", "between", "behind"])
@pytest.mark.parametrize("num_arrived", [0, 7, CHUNK_TOKENS + 3, 2 * CHUNK_TOKENS])
def test_what_does_not_arrive_is_computed(loaded: Loaded, exactness: Exactness, begins: str, num_arrived: int) -> None:
    engine = Engine(loaded(), num_slots=2, prefill_chunk_tokens=CHUNK_TOKENS, exactness=exactness)
    prompt = random_prompt(random.Random(9), 2 * CHUNK_TOKENS + 5)
    first = start(engine, request_for(prompt))
    kv, logits = engine.kv(first, 0, first.num_prompt_tokens), first.prompt_logits
    warm = arriving_request(prompt, logits)
    parts = pieces_of(kv.slice(0, num_arrived), 7)
    if begins == "before":
        start(engine, warm)
    for at, part in enumerate(parts):
        assert not engine.receive(warm, part)
        if begins == "between" and at == 0:
            start(engine, warm)
    assert not engine.settle(warm)
    assert warm.num_restored == engine.cuts.last(num_arrived)
    num_held = sum(span.num_tokens for span in warm.restored)
    assert num_held == (warm.num_restored if warm.slot is None else 0), "what lies in the slot is held no longer"
    if warm.slot is None:
        start(engine, warm)
    else:
        assert warm.output_tokens == first.output_tokens[:1], "stored logits gave the first token"
        while engine.prefill(warm) is None:
            pass
    assert isinstance(warm.prompt_logits, torch.Tensor)
    if exactness == "bitwise":
        assert torch.equal(warm.prompt_logits, logits)
        assert_equal_kv(engine.kv(warm, 0, warm.num_prompt_tokens), kv)
    assert torch.allclose(warm.prompt_logits, logits, atol=1e-4)
    for _ in range(4):
        for request in (first, warm):
            request.emit(engine.decode([request]), "")
    assert warm.output_tokens == first.output_tokens


def test_more_than_the_prompt_or_kv_of_another_model_does_not_arrive(engine: Engine) -> None:
    prompt = random_prompt(random.Random(8), CHUNK_TOKENS)
    first = start(engine, request_for(prompt))
    kv = engine.kv(first, 0, first.num_prompt_tokens)
    warm = start(engine, arriving_request(prompt, first.prompt_logits))
    with pytest.raises(EngineError, match="more than the 16 tokens"):
        engine.receive(warm, KVSpan(kv.keys.repeat(1, 1, 2, 1), kv.values.repeat(1, 1, 2, 1)))
    with pytest.raises(EngineError, match="not of this model"):
        engine.receive(warm, KVSpan(kv.keys.bfloat16(), kv.values.bfloat16()))
    assert warm.num_arrived == 0
    assert engine.receive(warm, kv)
