"""Several chunks in one pass give the bits of one chunk each, or are not done; the digest names the bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.forward import ModuleForward
from semcache.daemon.engine.model import LoadedModel, load_model
from semcache.daemon.engine.packed import PLAIN
from semcache.daemon.engine.trial import WIDTHS, _telling_depth
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import FAMILIES, load, random_prompt, request_for

CHUNK = 16
Loaded = Callable[..., LoadedModel]


def computed(engine: Engine, prompt: list[int], *, wide: bool) -> tuple[KVSpan, Tensor, int]:
    """KV and logits of a prompt, and in how many passes they came."""
    request = request_for(prompt)
    engine.begin(request)
    while engine.prefill(request, wide=wide) is None:
        pass
    found = engine.prompt_kv(request, 0), request.prompt_logits, request.num_passes
    engine.release(request)
    return found


def assert_wide_is_narrow(engine: Engine, num_tokens: int) -> None:
    prompt = random_prompt(random.Random(num_tokens), num_tokens)
    narrow, wide = (computed(engine, prompt, wide=wide) for wide in (False, True))
    assert torch.equal(narrow[0].keys, wide[0].keys)
    assert torch.equal(narrow[0].values, wide[0].values)
    assert torch.equal(narrow[1], wide[1])
    num_chunks = num_tokens // engine.prefill_chunk_tokens
    assert (wide[2] < narrow[2]) == (bool(engine.widths) and num_chunks >= min(engine.widths))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_prompt_has_the_bits_of_its_chunks(family: str, dtype: str, loaded: Loaded) -> None:
    engine = Engine(loaded(family, dtype), num_slots=1, prefill_chunk_tokens=CHUNK)
    print(family, dtype, "widths", engine.widths)
    for num_tokens in (CHUNK - 1, CHUNK, 2 * CHUNK, 3 * CHUNK + 1, 4 * CHUNK, 6 * CHUNK, 7 * CHUNK + 5):
        assert_wide_is_narrow(engine, num_tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_built_in_model_too(dtype: str) -> None:
    loaded = load_model("mini", device="cpu", dtype=dtype, max_context_tokens=1024, progress=lambda *_: None)
    engine = Engine(loaded, num_slots=1, prefill_chunk_tokens=128)
    print("mini", dtype, "widths", engine.widths)
    for num_tokens in (512, 700, 1000):
        assert_wide_is_narrow(engine, num_tokens)


@pytest.fixture
def plain_llama(model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A model of its own with the modules that transformers gives it."""
    monkeypatch.setattr("semcache.daemon.engine.model.choose_products", lambda *_: PLAIN)
    plain = load(model_folder("llama"))
    return replace(plain, forward=ModuleForward(plain.model))


class Moody(nn.Linear):
    """Rounds otherwise when it gets many rows, as a library may that has a kernel for each size."""

    def forward(self, states: Tensor) -> Tensor:
        output = super().forward(states)
        return output * (1 + 1e-6) if states.shape[-2] > 2 * CHUNK else output


@pytest.mark.parametrize("layer", [0, -1])
def test_kernels_that_depend_on_the_number_of_rows_are_found(layer: int, plain_llama: LoadedModel) -> None:
    loaded = plain_llama
    mlp: Any = loaded.model.base_model.layers[layer].mlp
    moody = Moody(mlp.down_proj.in_features, mlp.down_proj.out_features, bias=False)
    moody.weight = mlp.down_proj.weight
    mlp.down_proj = moody
    engine = Engine(loaded, num_slots=1, prefill_chunk_tokens=CHUNK)
    assert engine.widths in ((), (2,))
    assert set(engine.widths) <= set(WIDTHS)
    assert_wide_is_narrow(engine, 8 * CHUNK)


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
