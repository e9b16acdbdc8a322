"""The end of a chunk alone gives the bits of the whole, or is not computed alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig

from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.forward import ModuleForward
from semcache.daemon.engine.kv import PrefillStep, SlotPool, StepCache
from semcache.daemon.engine.model import LoadedModel, load_model
from semcache.daemon.engine.trial import _telling_depth, try_out
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import (
    CONTEXT_TOKENS,
    FAMILIES,
    load,
    random_prompt,
    request_for,
    restored_request,
    save_config,
)

CHUNK = 16
Loaded = Callable[..., LoadedModel]


def computed(engine: Engine, prompt: list[int]) -> tuple[KVSpan, Tensor]:
    """KV and logits of a prompt, chunk by chunk."""
    request = request_for(prompt)
    engine.begin(request)
    while engine.prefill(request) is None:
        pass
    found = engine.kv(request, 0, request.num_prompt_tokens), request.prompt_logits
    engine.release(request)
    return found


class Moody(nn.Linear):
    """Rounds otherwise when it gets another number of rows, as a library may that has a kernel for each size."""

    def __init__(self, linear: nn.Linear, few: int, many: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = linear.weight
        self.rows = range(few, many + 1)

    def forward(self, states: Tensor) -> Tensor:
        output = super().forward(states)
        return output if states.shape[-2] in self.rows else output * (1 + 1e-6)


def test_a_chunk_stays_whole_where_rows_depend_on_each_other(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=272, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
    )  # fmt: skip
    loaded = load(save_config(tmp_path, config))
    for chunk_tokens in (CHUNK, 64):
        engine = Engine(loaded, num_slots=1, prefill_chunk_tokens=chunk_tokens)
        for num_tokens in (2 * chunk_tokens, 3 * chunk_tokens + 5, 4 * chunk_tokens):
            assert_logits_come_back(engine, num_tokens)
        assert not engine.joins
        assert engine.cuts.last_rows == chunk_tokens


def assert_logits_come_back(engine: Engine, num_tokens: int) -> None:
    """All KV of a prompt restored without its logits: as few rows as were proven give them, and the same KV."""
    prompt = random_prompt(random.Random(num_tokens), num_tokens)
    kv, logits = computed(engine, prompt)
    warm = restored_request(prompt, [kv])
    engine.begin(warm)
    chunk_tokens = engine.prefill_chunk_tokens
    is_first, is_whole = num_tokens <= chunk_tokens, num_tokens % chunk_tokens == 0
    start = (num_tokens - 1) // chunk_tokens * chunk_tokens
    assert warm.num_computed == (num_tokens - engine.cuts.last_rows if is_whole and not is_first else start)
    assert engine.prefill(warm) is not None
    again = engine.kv(warm, 0, num_tokens)
    engine.release(warm)
    assert torch.equal(again.keys, kv.keys)
    assert torch.equal(again.values, kv.values)
    assert torch.equal(warm.prompt_logits, logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_a_chunk_has_the_bits_of_the_whole(family: str, dtype: str, loaded: Loaded) -> None:
    engine = Engine(loaded(family, dtype), num_slots=1, prefill_chunk_tokens=64)
    print(family, dtype, "rows", engine.cuts.last_rows)
    for num_tokens in (40, 64, 65, 128, 150, 192, 256):
        assert_logits_come_back(engine, num_tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_end_of_a_chunk_of_the_built_in_model(dtype: str) -> None:
    loaded = load_model("mini", device="cpu", dtype=dtype, max_context_tokens=1536, progress=lambda *_: None)
    engine = Engine(loaded, num_slots=1, prefill_chunk_tokens=128)
    print("mini", dtype, "rows", engine.cuts.last_rows)
    for num_tokens in (256, 640, 1536):
        assert_logits_come_back(engine, num_tokens)


@pytest.mark.parametrize("layer", [0, -1])
def test_a_kernel_for_few_rows_is_found(layer: int, plain_llama: LoadedModel) -> None:
    mlp: Any = plain_llama.model.base_model.layers[layer].mlp
    few = mlp.down_proj
    for least, expected in ((33, 64), (65, 128)):
        mlp.down_proj = Moody(few, least, 256)
        engine = Engine(plain_llama, num_slots=1, prefill_chunk_tokens=128)
        assert engine.cuts.last_rows in (expected, 128)  # the stock kernels may be moody themselves
        assert_logits_come_back(engine, 256)


def test_a_card_computes_whole_chunks(loaded: Loaded) -> None:
    """There the trial's one number of keys proves nothing about another, so that a narrow pass is not even tried."""
    pool, passes = SlotPool(loaded().info, 1), []
    pool.info = replace(pool.info, device="cuda")

    class Watching(ModuleForward):
        def __call__(self, tokens: Tensor, cache: StepCache, num_logits: int) -> Tensor | None:
            passes.append(tokens.shape[1])
            return super().__call__(tokens, cache, num_logits)

    trial = try_out(Watching(loaded().model), pool, 64)
    assert trial.last_rows == 64
    assert min(num_tokens for num_tokens in passes if num_tokens > 1) == 64


def test_layers_of_one_kind_are_tried_in_part_and_others_as_a_whole(plain_llama: LoadedModel) -> None:
    forward = plain_llama.forward
    assert _telling_depth(forward, 30) == 3
    assert _telling_depth(forward, 2) == 2
    layer: Any = forward.model.base_model.layers[0]
    layer.mlp.act_fn = nn.GELU()
    assert _telling_depth(forward, 30) == 30


def test_the_digest_is_of_bits(plain_llama: LoadedModel) -> None:
    first, again = (Engine(plain_llama, num_slots=1, prefill_chunk_tokens=CHUNK) for _ in range(2))
    assert first.numerics == again.numerics
    norm: Any = plain_llama.model.base_model.norm
    norm.weight.data = norm.weight * (1 + 1e-6)
    assert Engine(plain_llama, num_slots=1, prefill_chunk_tokens=CHUNK).numerics != first.numerics


def test_every_pass_stands_on_computed_kv(plain_llama: LoadedModel) -> None:
    stands: dict[int, bool] = {}

    class Watching(ModuleForward):
        def __call__(self, tokens: Tensor, cache: StepCache, num_logits: int) -> Tensor | None:
            if isinstance(step := cache.step, PrefillStep):
                written = cache.pool.values[0][step.slot, :, : step.start].any(dim=-1)
                stands[step.start] = stands.get(step.start, True) and bool(written.all())
            return super().__call__(tokens, cache, num_logits)

    Engine(replace(plain_llama, forward=Watching(plain_llama.model)), num_slots=1, prefill_chunk_tokens=64)
    assert max(stands) >= CONTEXT_TOKENS - 64
    assert all(stands.values()), stands


def test_tokens_whose_kv_is_no_number_leave_nothing_behind(plain_llama: LoadedModel) -> None:
    embedding: Any = plain_llama.model.get_input_embeddings()
    embedding.weight[:] = float("nan")
    pool = Engine(plain_llama, num_slots=2, prefill_chunk_tokens=CHUNK)._pool
    assert all(tensor.isfinite().all() for tensor in (*pool.keys, *pool.values))
