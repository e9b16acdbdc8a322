"""Packed products: the same numbers up to rounding, the same bits back, and plain modules where a model needs them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from semcache.daemon.engine import packed
from semcache.daemon.engine.attention import ATTENTION_NAME
from semcache.daemon.engine.machine import AMD, INTEL
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.packed import (
    BOTH,
    PACKED,
    PLAIN,
    SPLIT,
    LinearShare,
    PackedLinear,
    SharedProduct,
    choose_products,
    held_bytes,
    pack,
)
from semcache.daemon.engine.servable import stock_attention
from tests.daemon.engine.conftest import FAMILIES, load, save_model, tiny_config

Loaded = Callable[..., LoadedModel]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}  # of the largest number

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def linears(*sizes: int, has_bias: bool = False, dtype: torch.dtype = torch.float32) -> list[nn.Linear]:
    torch.manual_seed(0)
    made = [nn.Linear(24, size, bias=has_bias, dtype=dtype) for size in sizes]
    return [module.requires_grad_(False) for module in made]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    difference = (ours.float() - theirs.float()).abs().max()
    assert float(difference) <= TOLERANCE[theirs.dtype] * float(theirs.float().abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 40])
def test_a_packed_product_is_the_plain_one(dtype: torch.dtype, has_bias: bool, num_rows: int) -> None:
    parts = linears(8, 5, has_bias=has_bias, dtype=dtype)
    states, residual = torch.randn(1, num_rows, 24).to(dtype), torch.randn(num_rows, 13).to(dtype)
    expected, before = torch.cat([part(states) for part in parts], dim=-1), residual.clone()
    for products in (PACKED, BOTH, SPLIT):
        product = PackedLinear(parts, products)
        assert_close(product(states), expected)
        assert_close(product.added(states[0], residual), expected[0] + residual)
        assert torch.equal(residual, before)


@pytest.mark.parametrize(("products", "max_rows"), [(BOTH, 3), (SPLIT, 2)])
def test_kept_plain_weights_serve_few_rows(products: str, max_rows: int) -> None:
    [linear], states = linears(8), torch.randn(max_rows + 1, 24)
    product = PackedLinear([linear], products)
    assert_close(product(states[:max_rows]), F.linear(states[:max_rows], linear.weight))
    for kept in product.kept():
        if not kept.is_mkldnn:
            kept.zero_()
    assert not product(states[:max_rows]).any()
    assert product(states).any()


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_rows_are_split_among_any_number_of_threads(num_threads: int) -> None:
    [linear], states = linears(13), torch.randn(2, 24)
    num_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        product = PackedLinear([linear], SPLIT)
    finally:
        torch.set_num_threads(num_before)
    for num_rows in (1, 2):
        assert_close(product(states[:num_rows]), linear(states[:num_rows]))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_bias", [False, True])
def test_unpacking_gives_the_same_bits(dtype: torch.dtype, has_bias: bool) -> None:
    parts = linears(8, 5, has_bias=has_bias, dtype=dtype)
    for part, again in zip(parts, PackedLinear(parts, PACKED).unpacked(), strict=True):
        assert torch.equal(part.weight, again.weight)
        assert (part.bias is None) == (again.bias is None)
        assert part.bias is None or torch.equal(part.bias, again.bias)
        assert (again.in_features, again.out_features) == (part.in_features, part.out_features)


@given(calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_whoever_calls_in_whatever_order_gets_its_own_product(calls: list[tuple[int, int]]) -> None:
    parts, inputs = linears(8, 5, 5), [torch.randn(1, 4, 24) for _ in range(3)]
    shared = SharedProduct(PackedLinear(parts, PACKED))
    for part, states in calls:
        assert_close(shared.output(part, inputs[states]), parts[part](inputs[states]))


def test_siblings_cost_one_product_and_keep_nothing_afterwards() -> None:
    product = PackedLinear(linears(8, 5, 5), PACKED)
    shared, states = SharedProduct(product), torch.randn(1, 2, 24)
    outputs = [shared.output(part, states) for part in range(3)]
    assert len({output.untyped_storage().data_ptr() for output in outputs}) == 1
    held = weakref.ref(states)
    del states
    assert held() is None


def short(name: str) -> str:
    return name.rpartition(".")[2].removesuffix("_proj")


def test_siblings_are_found_by_running_the_model(tmp_path: Path) -> None:
    expected = {
        "llama": [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]],
        "phi3": [["qkv"], ["o"], ["gate_up"], ["down"]],
    }
    for family, layer in expected.items():
        model = load(save_model(tmp_path / family, family)).model
        packed._restore(model)
        groups = [[short(name) for name in group] for group in packed._siblings(model)]
        assert groups == [*layer, *layer, ["lm_head"]]


@torch.inference_mode()
def logits_of(model: Any, num_tokens: int) -> Tensor:
    with stock_attention(model, "sdpa"):
        return model(torch.arange(num_tokens)[None], use_cache=False).logits[0]


@pytest.mark.parametrize("products", [PACKED, BOTH, SPLIT])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_says_what_the_plain_one_says(family: str, dtype: str, products: str) -> None:
    torch.manual_seed(1)
    plain = AutoModelForCausalLM.from_config(tiny_config(family), attn_implementation=ATTENTION_NAME)
    plain = plain.to(getattr(torch, dtype)).requires_grad_(False).eval()
    fast, checks = copy.deepcopy(plain), []
    pack(fast, products, lambda: checks.append(None))
    assert len(checks) == 1
    assert not any(type(module) is nn.Linear for module in fast.modules())
    for num_tokens in (2, 30):
        difference = logits_of(fast, num_tokens).float() - logits_of(plain, num_tokens).float()
        assert float(difference.square().mean().sqrt()) < {"float32": 1e-5, "bfloat16": 0.05}[dtype]


def test_loading_packs_with_what_suits_this_machine(loaded: Loaded) -> None:
    model = loaded("llama")
    is_packed = any(isinstance(module, PackedLinear | LinearShare) for module in model.model.modules())
    assert is_packed == (model.info.products != PLAIN)
    num_linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128) + 272 * 64
    num_twice = num_linear if model.info.products in (BOTH, SPLIT) else 0
    assert model.info.weights_bytes == 4 * (model.info.num_parameters + num_twice)


@pytest.mark.parametrize(
    ("vendor", "dtype", "weights_bytes", "products"),
    [
        (INTEL, "float32", 1000, BOTH),
        (INTEL, "float32", 1001, PLAIN),
        (AMD, "float32", 1000, SPLIT),
        (AMD, "float32", 1001, PACKED),
        (AMD, "float16", 1, PLAIN),
        (None, "float32", 1, PLAIN),
    ],
)
def test_the_layout_follows_from_processor_dtype_and_size(
    monkeypatch: pytest.MonkeyPatch, vendor: str | None, dtype: str, weights_bytes: int, products: str
) -> None:
    monkeypatch.setattr(packed, "processor_vendor", lambda: vendor)
    monkeypatch.setattr(packed, "memory_bytes", lambda: 16_000)
    assert choose_products("cpu", dtype, weights_bytes) == products
    assert choose_products("cuda", dtype, weights_bytes) == PLAIN


@pytest.mark.parametrize("is_tied", [False, True])
def test_plain_weights_are_freed_but_for_tied_embeddings(tmp_path: Path, is_tied: bool) -> None:
    model = load(save_model(tmp_path, tie_word_embeddings=is_tied)).model
    packed._restore(model)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    weights = {name: weakref.ref(module.weight) for name, module in model.named_modules() if type(module) is nn.Linear}
    pack(model, PACKED, lambda: None)
    alive = {name for name, weight in weights.items() if weight() is not None}
    assert alive == ({"lm_head"} if is_tied else set())
    assert held_bytes(model) == num_bytes + (model.lm_head.unpacked()[0].weight.nbytes if is_tied else 0)
    before = logits_of(model, 9)
    packed._restore(model)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == is_tied
    assert_close(before, logits_of(model, 9))


def reads_a_weight(self: Any, x: Tensor) -> Tensor:
    return F.linear(self.act_fn(self.gate_proj(x)) * self.up_proj(x), self.down_proj.weight)


def changes_its_input(self: Any, x: Tensor) -> Tensor:
    gate = self.gate_proj(x)
    x = x.mul_(2.0)
    return self.down_proj(self.act_fn(gate) * self.up_proj(x))


@pytest.mark.parametrize(("forward", "left"), [(reads_a_weight, nn.Linear), (changes_its_input, PackedLinear)])
def test_a_model_that_packing_does_not_suit_is_served_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forward: Callable[..., Tensor], left: type[nn.Module]
) -> None:
    monkeypatch.setattr(LlamaMLP, "forward", forward)
    monkeypatch.setattr(packed, "processor_vendor", lambda: AMD)
    model = load(save_model(tmp_path)).model
    assert all(type(layer.mlp.down_proj) is left for layer in model.model.layers)
    assert all(type(layer.self_attn.q_proj) is left for layer in model.model.layers)
