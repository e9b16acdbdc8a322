"""The forward written out gives what the model's own modules give, or does not serve."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GraniteConfig

from semcache.daemon.engine.decode import DecodeRow, decode_rows
from semcache.daemon.engine.forward import Forward, ModuleForward
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.llama import WRITTEN_OUT, LlamaForward
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.packed import PACKED, PLAIN
from semcache.daemon.engine.prefill import prefill_chunk, prefill_pass
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import (
    CONTEXT_TOKENS,
    FAMILIES,
    byte_tokenizer,
    load,
    random_prompt,
    save_model,
)

# Largest difference seen of KV and logits, in standard deviations of the logits: 2e-6 and 0.03.
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.15}


@torch.inference_mode()
def computed(forward: Forward, loaded: LoadedModel) -> tuple[list[Tensor], list[KVSpan]]:
    """Logits and KV of every kind of step: chunks, a wide pass, verification, rows of different lengths."""
    pool, rng = SlotPool(loaded.info, 3), random.Random(5)
    long, short = random_prompt(rng, 40), random_prompt(rng, 7)
    assert prefill_chunk(forward, pool, 2, long[:16], 0, num_logits=0) is None
    assert forward(*prefill_pass(pool, 1, long[:32], 0, num_logits=0, chunk_tokens=16)) is None
    single = prefill_chunk(forward, pool, 2, long[16:], 16, num_logits=1)
    wide = prefill_chunk(forward, pool, 1, long[32:], 32, num_logits=1)
    assert single is not None
    assert wide is not None
    first = prefill_chunk(forward, pool, 0, short, 0, num_logits=1)
    assert first is not None
    verified = prefill_chunk(forward, pool, 2, random_prompt(rng, 5), 40, num_logits=5)
    assert verified is not None
    stepped = decode_rows(forward, pool, [DecodeRow(2, 45, 9), DecodeRow(0, 7, 10), DecodeRow(1, 40, 11)])
    logits = [*single, *wide, *first, *verified, *stepped]
    return logits, [pool.snapshot(2, 0, 46), pool.snapshot(0, 0, 8), pool.snapshot(1, 0, 41)]


@pytest.mark.parametrize("products", [PLAIN, PACKED])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_gives_what_the_modules_give(
    family: str, dtype: str, products: str, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semcache.daemon.engine.model.choose_products", lambda *_: products)
    loaded = load(model_folder(family), dtype)
    assert isinstance(loaded.forward, LlamaForward)
    assert loaded.info.forward == WRITTEN_OUT
    ours, our_kv = computed(loaded.forward, loaded)
    modules, their_kv = computed(ModuleForward(loaded.model), loaded)
    spread = float(torch.stack(modules).float().std())
    for row, other in zip(ours, modules, strict=True):
        assert float((row - other).float().abs().max()) <= TOLERANCE[dtype] * spread
    for span, stock in zip(our_kv, their_kv, strict=True):
        assert float((span.keys - stock.keys).float().abs().max()) <= TOLERANCE[dtype] * spread
        assert float((span.values - stock.values).float().abs().max()) <= TOLERANCE[dtype] * spread


def test_weights_that_tell_heads_apart_are_applied_to_their_heads(tmp_path: Path) -> None:
    """A new model's norms are all ones, which would hide one that is left out."""
    folder = save_model(tmp_path / "qwen3", "qwen3")
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    model.save_pretrained(folder)
    loaded = load(folder)
    assert loaded.info.forward == WRITTEN_OUT
    ours, _ = computed(loaded.forward, loaded)
    modules, _ = computed(ModuleForward(loaded.model), loaded)
    assert torch.allclose(torch.stack(ours), torch.stack(modules), atol=1e-4)


def test_a_layer_that_computes_something_else_is_served_by_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Doubled(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return 2 * nn.functional.silu(states)

    folder = save_model(tmp_path / "llama")
    init = LlamaForward.__init__

    def wrong(self: LlamaForward, model: Any) -> None:
        init(self, model)
        self._layers[-1]._activation = Doubled()

    monkeypatch.setattr(LlamaForward, "__init__", wrong)
    loaded = load(folder)
    assert isinstance(loaded.forward, ModuleForward)
    assert loaded.info.forward == "modules"
    assert "own modules serve it" in caplog.text


def test_part_rotary_is_left_to_the_modules(tmp_path: Path) -> None:
    loaded = load(save_model(tmp_path / "phi3", "phi3", partial_rotary_factor=0.5))
    assert isinstance(loaded.forward, ModuleForward)


def test_a_family_with_factors_of_its_own_is_left_to_its_modules(tmp_path: Path) -> None:
    config = GraniteConfig(
        vocab_size=272, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT_TOKENS, initializer_range=0.2,
        bos_token_id=None, eos_token_id=257, pad_token_id=257, residual_multiplier=0.5,
    )  # fmt: skip
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert isinstance(load(tmp_path).forward, ModuleForward)
