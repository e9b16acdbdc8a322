"""What shares a pass gets the bits of a pass of its own, or has one of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import MAX_CHUNKS, Engine
from semcache.daemon.engine.llama import LlamaForward
from semcache.daemon.engine.model import LoadedModel, load_model
from semcache.daemon.engine.rows import Rows
from semcache.daemon.request import Request
from tests.daemon.engine.beside import alone, assert_each_is_as_alone
from tests.daemon.engine.conftest import (
    FAMILIES,
    assert_equal_kv,
    assert_same_or_tied,
    generate,
    load,
    random_prompt,
    request_for,
    save_model,
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
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(0, 1 << 20))
def test_whatever_the_lengths(shared_engine: Engine, sizes: list[int], seed: int) -> None:
    prompts = [random_prompt(random.Random(seed + i), num_tokens) for i, num_tokens in enumerate(sizes)]
    assert_each_is_as_alone(shared_engine, prompts, seed)


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


def test_a_draft_beside_a_prompt_and_streams(plain_llama: LoadedModel) -> None:
    """What is accepted is what the model says alone; the prompt beside it keeps its bits."""
    engine = row_by_row(plain_llama)
    rng = random.Random(6)
    prompt, other, third = (random_prompt(rng, num_tokens) for num_tokens in (20, 9, 2 * CHUNK))
    [expected] = generate(engine, [request_for(prompt)], 8)
    kv, _ = alone(engine, third)
    drafted, stream, late = start(engine, request_for(prompt)), start(engine, request_for(other)), request_for(third)
    engine.begin(late)
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


class RowByRow(nn.Linear):
    """Whose rows are on their own for sure, up to `limit` of them and from place `first` on."""

    def __init__(self, linear: nn.Linear, *, limit: int = 1 << 20, first: int = 0) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight, self.limit, self.first = linear.weight, limit, first

    def forward(self, states: Tensor) -> Tensor:
        output = torch.stack([super(RowByRow, self).forward(row) for row in states])
        output[: self.first] *= 1 + 1e-6
        return output if len(states) <= self.limit else output * (1 + 1e-6)


PRODUCTS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def row_by_row(plain: LoadedModel, *, only: str | None = None, num_slots: int = 4, **fields: int) -> Engine:
    """An engine over products of that kind; the fields are of all of them, or of `only` one in each layer."""
    for layer in plain.model.base_model.layers:
        for part, names in PRODUCTS.items():
            owner: Any = getattr(layer, part)
            for name in names:
                options = fields if only in (None, name) else {}
                setattr(owner, name, RowByRow(getattr(owner, name), **options))
    return written_out(plain, num_slots=num_slots)


def written_out(plain: LoadedModel, num_slots: int = 3) -> Engine:
    return Engine(replace(plain, forward=LlamaForward(plain.model)), num_slots=num_slots, prefill_chunk_tokens=CHUNK)


def begun(engine: Engine, *sizes: int) -> list[Request]:
    requests = [request_for(random_prompt(random.Random(i), num_tokens)) for i, num_tokens in enumerate(sizes)]
    for request in requests:
        engine.begin(request)
    return requests


def test_where_rows_are_on_their_own_every_pass_is_shared(plain_llama: LoadedModel) -> None:
    engine = row_by_row(plain_llama)
    assert engine.joins
    prompts = [random_prompt(random.Random(i), num_tokens) for i, num_tokens in enumerate((4 * CHUNK, 7, CHUNK + 5, 1))]
    assert [assert_each_is_as_alone(engine, prompts, seed) for seed in range(3)] == [0] * 3
    [request] = begun(engine, MAX_CHUNKS * CHUNK)
    assert engine.prefill(request, max_chunks=MAX_CHUNKS) is not None
    assert request.num_passes == 1


def test_a_pass_has_no_more_rows_than_are_alike(plain_llama: LoadedModel) -> None:
    """Neither one over several requests nor one over several chunks of one."""
    engine = row_by_row(plain_llama, limit=2 * CHUNK + 1)
    assert engine.joins
    stream = start(engine, request_for(random_prompt(random.Random(9), 5)))
    first, second, third = begun(engine, 6 * CHUNK, 6 * CHUNK, 1)
    assert engine.together([first, second, third], (), [stream]) is None, "one row too many"
    assert engine.together([first, second], (), [stream]) is not None
    engine.release(third)
    kv, _ = alone(engine, first.prompt_tokens)
    assert_equal_kv(engine.kv(first, 0, CHUNK), kv.slice(0, CHUNK))
    before = first.num_passes
    engine.prefill(first, max_chunks=MAX_CHUNKS)
    assert first.num_computed == 3 * CHUNK, "two chunks, where three and four are too many"
    assert first.num_passes == before + 1
    assert_equal_kv(engine.kv(first, 0, 3 * CHUNK), kv.slice(0, 3 * CHUNK))


@pytest.mark.parametrize("name", [name for names in PRODUCTS.values() for name in names])
def test_every_product_is_tried(name: str, plain_llama: LoadedModel) -> None:
    assert not row_by_row(plain_llama, only=name, limit=CHUNK).joins


def test_every_place_is_tried(plain_llama: LoadedModel) -> None:
    """Rows at the same place of every pass would have the same bits; beside others they lie elsewhere."""
    engine = row_by_row(plain_llama, first=CHUNK // 2)
    assert not Rows(engine._forward, CHUNK).are_alike(CHUNK)
    assert not engine.joins


def test_products_that_depend_on_the_number_of_rows_are_not_joined(plain_llama: LoadedModel) -> None:
    engine = row_by_row(plain_llama, limit=CHUNK)
    assert not engine.joins
    assert engine.max_chunks == 1
    prompts = [random_prompt(random.Random(i), 3 * CHUNK) for i in range(3)]
    assert assert_each_is_as_alone(engine, prompts, 1) > 0
    [request] = begun(engine, 2 * CHUNK)
    engine.prefill(request, max_chunks=MAX_CHUNKS)
    assert request.num_computed == CHUNK


def test_layers_that_are_not_of_one_kind_are_not_joined(plain_llama: LoadedModel) -> None:
    for layer in plain_llama.model.base_model.layers[:-1]:
        mlp: Any = layer.mlp
        mlp.down_proj = RowByRow(mlp.down_proj)
    assert not written_out(plain_llama).joins


def test_16_bits_would_hide_what_a_trial_has_to_see(loaded: Loaded) -> None:
    for family in FAMILIES:
        assert not Engine(loaded(family, "bfloat16"), num_slots=1, prefill_chunk_tokens=CHUNK).joins


def test_activations_that_depend_on_where_a_value_lies_change_nothing(plain_llama: LoadedModel) -> None:
    """A vector's kernel rounds otherwise than the one for what is left over, and how much is left is up to the rows."""

    class Lying(nn.SiLU):
        def forward(self, gate: Tensor) -> Tensor:
            return super().forward(gate) * (1 + 1e-6 * (torch.arange(gate.numel()).view_as(gate) % 5 == 0))

    for layer in plain_llama.model.base_model.layers:
        mlp: Any = layer.mlp
        mlp.act_fn = Lying()
    engine = row_by_row(plain_llama)
    assert engine.joins
    prompts = [random_prompt(random.Random(i), 2 * CHUNK + i) for i in range(3)]
    assert assert_each_is_as_alone(engine, prompts, 1) == 0


def test_two_drafts_in_one_pass_are_judged_apart(plain_llama: LoadedModel) -> None:
    engine, rng = row_by_row(plain_llama), random.Random(8)
    prompts = [random_prompt(rng, num_tokens) for num_tokens in (11, 20)]
    answers = [generate(engine, [request_for(prompt)], 7)[0] for prompt in prompts]
    drafted = []
    for prompt, answer, num_right in zip(prompts, answers, (5, 2), strict=True):
        tokens = (*answer[1 : 1 + num_right], (answer[1 + num_right] + 1) % 256)
        drafted.append((start(engine, request_for(prompt)), Proposal(tokens, "donor", 1)))
    found = engine.together((), drafted, ())
    assert found is not None
    for verified, answer, num_right in zip(found.verified, answers, (5, 2), strict=True):
        assert verified.is_tied or verified.tokens == answer[1 : 2 + num_right]
        assert not verified.is_tied or verified.tokens == answer[1 : 1 + len(verified.tokens)]


def test_several_threads_and_sizes_that_are_split_over_them(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "max_position_embeddings": 512, "initializer_range": 0.05,
    }  # fmt: skip
    loaded = load(save_model(tmp_path / "model", **sizes), max_context_tokens=512)
    rng, num_threads = random.Random(4), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        engine = Engine(loaded, num_slots=3, prefill_chunk_tokens=128)
        prompts = [random_prompt(rng, num_tokens) for num_tokens in (300, 129, 77)]
        num_apart = [assert_each_is_as_alone(engine, prompts, seed) for seed in range(2)]
        print("3 threads joins", engine.joins, "steps apart", num_apart)
    finally:
        torch.set_num_threads(num_threads)


def test_numbers_that_are_none_stay_with_their_request(plain_llama: LoadedModel) -> None:
    embedding: Any = plain_llama.model.get_input_embeddings()
    embedding.weight[270] = float("nan")
    engine = row_by_row(plain_llama)
    prompt, other = random_prompt(random.Random(1), CHUNK), random_prompt(random.Random(2), 5)
    kv, logits = alone(engine, prompt)
    stream, bad, good = start(engine, request_for(other)), request_for([270] * CHUNK), request_for(prompt)
    engine.begin(bad)
    engine.begin(good)
    found = engine.together([bad, good], (), [stream])
    assert found is not None
    assert found.tokens[0] is not None
    assert not bad.prompt_logits.isfinite().any()
    assert torch.equal(good.prompt_logits, logits)
    assert_equal_kv(engine.kv(good, 0, CHUNK), kv)
