"""What shares a pass gets the bits of a pass of its own, or has one of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import MAX_CHUNKS, Engine
from semcache.daemon.engine.llama import LlamaForward
from semcache.daemon.engine.model import LoadedModel, load_model
from semcache.daemon.engine.rows import Rows
from tests.daemon.engine.beside import alone, assert_each_is_as_alone
from tests.daemon.engine.conftest import (
    FAMILIES,
    Moody,
    assert_equal_kv,
    assert_same_or_tied,
    generate,
    random_prompt,
    request_for,
    start,
)

CHUNK = 16
Loaded = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def shared_engine(loaded: Loaded) -> Engine:
    return Engine(loaded(), num_slots=4, prefill_chunk_tokens=CHUNK)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_and_streams_in_one_pass_have_the_bits_of_their_own(family: str, dtype: str, loaded: Loaded) -> None:
    engine, rng = Engine(loaded(family, dtype), num_slots=4, prefill_chunk_tokens=CHUNK), random.Random(3)
    prompts = [random_prompt(rng, num_tokens) for num_tokens in (4 * CHUNK, 7, 2 * CHUNK + 5, 60)]
    num_apart = [assert_each_is_as_alone(engine, prompts, seed) for seed in range(3)]
    print(family, dtype, "joins", engine.joins, "steps apart", num_apart)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(0, 1 << 20), st.integers(1, MAX_CHUNKS))
def test_whatever_the_lengths(shared_engine: Engine, sizes: list[int], seed: int, max_chunks: int) -> None:
    prompts = [random_prompt(random.Random(seed + i), num_tokens) for i, num_tokens in enumerate(sizes)]
    assert_each_is_as_alone(shared_engine, prompts, seed, max_chunks)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_built_in_model_too(dtype: str) -> None:
    loaded = load_model("mini", device="cpu", dtype=dtype, max_context_tokens=1024, progress=lambda *_: None)
    engine, rng = Engine(loaded, num_slots=3, prefill_chunk_tokens=128), random.Random(4)
    prompts = [random_prompt(rng, num_tokens) for num_tokens in (300, 128, 77)]
    num_apart = assert_each_is_as_alone(engine, prompts, 1)
    print("mini", dtype, "joins", engine.joins, "steps apart", num_apart)


@pytest.mark.parametrize("num_tokens", [CHUNK, 2 * CHUNK, 3 * CHUNK + 1, 4 * CHUNK, 7 * CHUNK + 5])
def test_several_chunks_of_one_prompt_have_the_bits_of_one_after_the_other(num_tokens: int, engine: Engine) -> None:
    prompt = random_prompt(random.Random(num_tokens), num_tokens)
    kv, logits = alone(engine, prompt)
    request = request_for(prompt)
    engine.begin(request)
    while engine.prefill(request, max_chunks=MAX_CHUNKS) is None:
        pass
    assert_equal_kv(engine.kv(request, 0, num_tokens), kv)
    assert torch.equal(request.prompt_logits, logits)
    num_chunks = num_tokens // CHUNK
    if engine.joins:
        assert request.num_passes == -(-num_chunks // MAX_CHUNKS) + (num_tokens % CHUNK > 0)


def test_a_draft_beside_a_prompt_and_streams(engine: Engine) -> None:
    """What is accepted is what the model says alone; the prompt beside it keeps its bits."""
    rng = random.Random(6)
    prompt, other, third = (random_prompt(rng, num_tokens) for num_tokens in (20, 9, 2 * CHUNK))
    [expected] = generate(engine, [request_for(prompt)], 8)
    kv, _ = alone(engine, third)
    drafted, stream, late = start(engine, request_for(prompt)), start(engine, request_for(other)), request_for(third)
    engine.begin(late)
    if not engine.joins:
        pytest.skip("this machine's kernels depend on the number of rows")
    proposal = Proposal((*expected[1:5], (expected[5] + 1) % 256), "donor", 1)
    found = engine.together([late], [(drafted, proposal)], [stream])
    assert found is not None
    [verified], [token] = found.verified, found.tokens
    assert found.num_rows == CHUNK + 6 + 1
    if not verified.is_tied:
        assert verified.tokens == expected[1:6]
    assert token is not None
    stream.emit([token], "")
    assert engine.prefill(late) is not None
    assert_equal_kv(engine.kv(late, 0, len(third)), kv)
    [again] = generate(engine, [request_for(other)], 2)
    assert_same_or_tied(engine, other, stream.output_tokens, again)


def written_out(plain: LoadedModel, **fields: Any) -> Engine:
    settings = {"num_slots": 3, "prefill_chunk_tokens": CHUNK, **fields}
    return Engine(replace(plain, forward=LlamaForward(plain.model)), **settings)


def test_products_that_depend_on_the_number_of_rows_are_found(plain_llama: LoadedModel) -> None:
    """Another kernel for more rows than a chunk has, and another one from where on passes of two are no use either."""
    for layer in plain_llama.model.base_model.layers:
        mlp: Any = layer.mlp
        mlp.down_proj = Moody(mlp.down_proj, 1, CHUNK)
    engine = written_out(plain_llama)
    assert not engine.joins
    assert engine.max_chunks == 1
    prompts = [random_prompt(random.Random(i), 3 * CHUNK) for i in range(3)]
    assert_each_is_as_alone(engine, prompts, 1, MAX_CHUNKS)


def test_a_number_of_rows_that_is_not_alike_is_computed_apart(plain_llama: LoadedModel) -> None:
    for layer in plain_llama.model.base_model.layers:
        mlp: Any = layer.mlp
        mlp.down_proj = Moody(mlp.down_proj, 8, 2 * CHUNK)
    engine = written_out(plain_llama)
    rows = Rows(engine._forward, CHUNK)
    assert not rows.are_alike(7)
    assert not rows.are_alike(2 * CHUNK + 1)
    assert rows.are_alike(CHUNK)
    if not engine.joins:  # the stock kernels may be moody themselves
        pytest.skip("no number of rows is alike here")
    prompts = [random_prompt(random.Random(i), num_tokens) for i, num_tokens in enumerate((3 * CHUNK, CHUNK + 5, 40))]
    assert assert_each_is_as_alone(engine, prompts, 2, MAX_CHUNKS) > 0


def test_layers_that_are_not_of_one_kind_are_not_joined(plain_llama: LoadedModel) -> None:
    last: Any = plain_llama.model.base_model.layers[-1]
    last.mlp.down_proj = Moody(last.mlp.down_proj, 1, 4 * CHUNK)
    assert not written_out(plain_llama).joins


def test_activations_that_depend_on_where_a_value_lies_change_nothing(plain_llama: LoadedModel) -> None:
    """A vector's kernel rounds otherwise than the one for what is left over, and how much is left is up to the rows."""

    class Lying(torch.nn.SiLU):
        def forward(self, gate: Tensor) -> Tensor:
            return super().forward(gate) * (1 + 1e-6 * (torch.arange(gate.numel()).view_as(gate) % 5 == 0))

    for layer in plain_llama.model.base_model.layers:
        mlp: Any = layer.mlp
        mlp.act_fn = Lying()
    engine = written_out(plain_llama)
    prompts = [random_prompt(random.Random(i), 2 * CHUNK + i) for i in range(3)]
    assert_each_is_as_alone(engine, prompts, 1, MAX_CHUNKS)


def test_numbers_that_are_none_stay_with_their_request(plain_llama: LoadedModel) -> None:
    embedding: Any = plain_llama.model.get_input_embeddings()
    embedding.weight[270] = float("nan")
    engine = written_out(plain_llama)
    prompt, other = random_prompt(random.Random(1), CHUNK), random_prompt(random.Random(2), 5)
    kv, logits = alone(engine, prompt)
    stream, bad, good = start(engine, request_for(other)), request_for([270] * CHUNK), request_for(prompt)
    engine.begin(bad)
    engine.begin(good)
    found = engine.together([bad, good], (), [stream])
    if found is None:
        pytest.skip("no number of rows is alike here")
    assert found.tokens[0] is not None
    assert not bad.prompt_logits.isfinite().any()
    assert torch.equal(good.prompt_logits, logits)
    assert_equal_kv(engine.kv(good, 0, CHUNK), kv)
