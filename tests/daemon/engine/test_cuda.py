"""The engine's promises on a CUDA device. Skipped where there is none, and not run on any card so far."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semcache.daemon.engine.engine import MAX_CHUNKS, Engine
from tests.daemon.engine.beside import assert_each_is_as_alone
from tests.daemon.engine.conftest import (
    FAMILIES,
    assert_same_or_tied,
    generate,
    load,
    random_prompt,
    request_for,
    restored_request,
    start,
    stock_tokens,
)

CHUNK_TOKENS = 64  # four in a context, so that all of them fit in one pass; more than a narrow pass, were there one

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.parametrize("dtype", ["float32", "bfloat16"]),
    pytest.mark.parametrize("family", FAMILIES),
]


def engine_on_device(folder: Path, dtype: str) -> tuple[Engine, Callable[[list[int], int], list[int]]]:
    """An engine, and what `generate()` of its stock model says."""
    loaded = load(folder, dtype, device="cuda")
    engine = Engine(loaded, num_slots=4, prefill_chunk_tokens=CHUNK_TOKENS)
    assert engine.info.device.startswith("cuda")
    return engine, lambda prompt, num_tokens: stock_tokens(loaded, prompt, num_tokens)


def test_restored_kv_gives_the_bits_of_a_cold_run(model_folder: Callable[[str], Path], family: str, dtype: str) -> None:
    engine, _ = engine_on_device(model_folder(family), dtype)
    prompt = random_prompt(random.Random(2), 4 * CHUNK_TOKENS)
    cold = start(engine, request_for(prompt))
    whole = engine.kv(cold, 0, len(prompt))
    engine.release(cold)
    for num_restored in range(0, len(prompt) + 1, CHUNK_TOKENS):
        warm = start(engine, restored_request(prompt, [whole.slice(0, num_restored)]))
        again = engine.kv(warm, 0, len(prompt))
        engine.release(warm)
        assert torch.equal(warm.prompt_logits, cold.prompt_logits), num_restored
        assert torch.equal(again.keys, whole.keys), num_restored
        assert torch.equal(again.values, whole.values), num_restored


def test_several_chunks_in_one_pass_give_the_bits_of_one_after_the_other(
    model_folder: Callable[[str], Path], family: str, dtype: str
) -> None:
    engine, _ = engine_on_device(model_folder(family), dtype)
    for num_chunks in (2, 4):
        prompt = random_prompt(random.Random(num_chunks), num_chunks * CHUNK_TOKENS)
        narrow, wide = request_for(prompt), request_for(prompt)
        for request in (narrow, wide):
            engine.begin(request)
            while engine.prefill(request, max_chunks=MAX_CHUNKS if request is wide else 1) is None:
                pass
        ours, theirs = (engine.kv(request, 0, len(prompt)) for request in (wide, narrow))
        print(family, dtype, "joins", engine.joins, "passes", wide.num_passes)
        assert torch.equal(wide.prompt_logits, narrow.prompt_logits)
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        for request in (narrow, wide):
            engine.release(request)


def test_prompts_and_streams_in_one_pass_have_the_bits_of_their_own(
    model_folder: Callable[[str], Path], family: str, dtype: str
) -> None:
    engine, _ = engine_on_device(model_folder(family), dtype)
    rng = random.Random(3)
    prompts = [random_prompt(rng, num_tokens) for num_tokens in (3 * CHUNK_TOKENS, 7, CHUNK_TOKENS + 5)]
    num_apart = assert_each_is_as_alone(engine, prompts, 1)
    print(family, dtype, "joins", engine.joins, "steps apart", num_apart)


def test_tokens_are_those_of_generate_alone_and_together(
    model_folder: Callable[[str], Path], family: str, dtype: str
) -> None:
    engine, stock = engine_on_device(model_folder(family), dtype)
    rng = random.Random(1)
    prompts = [random_prompt(rng, num_tokens) for num_tokens in (1, CHUNK_TOKENS, 53, 100)]
    together = generate(engine, [request_for(prompt) for prompt in prompts], 24)
    for prompt, ours in zip(prompts, together, strict=True):
        [alone] = generate(engine, [request_for(prompt)], 24)
        assert_same_or_tied(engine, prompt, ours, alone)
        assert_same_or_tied(engine, prompt, alone, stock(prompt, 24))
