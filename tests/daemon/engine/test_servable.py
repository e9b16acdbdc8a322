"""What cannot be served exactly is refused with the reason; what only looks so is served."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BloomConfig,
    DynamicCache,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    StableLmConfig,
    T5Config,
)

from semcache.daemon.engine import attention
from semcache.daemon.engine.kv import Run
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.servable import probe, served_context
from semcache.errors import ModelLoadError
from tests.daemon.engine.conftest import CONTEXT_TOKENS, load, save_config, save_model, tiny_config

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 128,
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, **more}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (T5Config(), "encoder-decoder"),
        (LlamaConfig(rope_parameters=rope("dynamic")), "dynamic RoPE changes keys"),
        (MistralConfig(sliding_window=4096), "slides over 4096 tokens.*set engine.max_context_tokens to at most 4096"),
        (
            Qwen2Config(use_sliding_window=True, sliding_window=512, max_window_layers=1),
            "slides over 512 tokens, less than the served context of 8192",
        ),
        (MambaConfig(), "mamba layers|linear_attention layers"),
    ],
)
def test_configurations_that_are_refused(config: Any, sentence: str) -> None:
    with pytest.raises(ModelLoadError, match=sentence):
        served_context(config, None)


@pytest.mark.parametrize(
    ("config", "cap", "tokens"),
    [
        (LlamaConfig(max_position_embeddings=2048), None, 2048),
        (LlamaConfig(max_position_embeddings=131072), None, 8192),
        (LlamaConfig(max_position_embeddings=131072), 32768, 32768),
        (LlamaConfig(max_position_embeddings=4096, rope_parameters=rope("linear")), None, 4096),
        (MistralConfig(sliding_window=4096), 4096, 4096),
        (MistralConfig(sliding_window=None), None, 8192),
        (Qwen2Config(use_sliding_window=False, sliding_window=512), None, 8192),
        (Phi3Config(original_max_position_embeddings=128, rope_parameters=LONGROPE, hidden_size=512), None, 128),
    ],
)
def test_the_served_context(config: Any, cap: int | None, tokens: int) -> None:
    assert served_context(config, cap) == tokens


def test_longrope_below_its_switch_is_served(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "phi3", rope_parameters=LONGROPE, original_max_position_embeddings=128)
    assert load(folder).info.context_tokens == 128


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_static_rope_is_served(tmp_path: Path, kind: str) -> None:
    more = {"original_max_position_embeddings": 128}
    if kind == "llama3":
        more.update(low_freq_factor=1.0, high_freq_factor=4.0)
    folder = save_model(tmp_path, "llama", rope_parameters=rope(kind, **more))
    assert load(folder).info.context_tokens == CONTEXT_TOKENS


def test_softcap_is_refused_by_name(tmp_path: Path) -> None:
    small = {key: getattr(tiny_config("llama"), key) for key in ("hidden_size", "intermediate_size", "vocab_size")}
    config = Gemma2Config(
        **small, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=8192
    )
    with pytest.raises(ModelLoadError, match="passes 'softcap' to its attention"):
        load(save_config(tmp_path, config))


def test_a_sixth_family_with_partial_rotary_is_served(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=272, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    assert load(save_config(tmp_path, config)).info.num_kv_heads == 4


def test_a_family_that_drops_keyword_arguments_is_served(tmp_path: Path) -> None:
    small = {key: getattr(tiny_config("llama"), key) for key in ("hidden_size", "intermediate_size", "vocab_size")}
    config = StableLmConfig(**small, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    assert load(save_config(tmp_path, config)).info.num_kv_heads == 2


def test_a_family_with_its_own_attention_is_refused(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=272, hidden_size=64, n_layer=2, n_head=4)
    with pytest.raises(ModelLoadError, match="code of 'bloom' has an attention of its own"):
        load(save_config(tmp_path, config))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace one part of our attention by a version with a bug."""

    def no_causality(query: Any, key: Any, value: Any, scaling: Any, *_: Any) -> Any:
        return F.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True)

    def upper_left(query: Any, key: Any, value: Any, scaling: Any, *_: Any) -> Any:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)

    right = attention._decode
    bugs = {
        "no causality": ("_prefill", no_causality),
        "upper-left mask": ("_prefill", upper_left),
        "one key too few": ("_decode", lambda q, k, v, s, run: right(q, k, v, s, _shorter(run))),
        "first row's keys for all": ("_decode", lambda q, k, v, s, run: right(q, _first(k), _first(v), s, run)),
        "no mask": ("_decode", lambda q, k, v, s, run: right(q, k, v, s, run._replace(mask=None))),
    }
    return lambda bug: monkeypatch.setattr(attention, *bugs[bug])


def _shorter(run: Run) -> Run:
    assert run.mask is not None
    return run._replace(mask=F.pad(run.mask[..., 1:], (0, 1), value=float("-inf")))


def _first(pool: torch.Tensor) -> torch.Tensor:
    return pool[:1].expand_as(pool)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "bug", ["no causality", "upper-left mask", "one key too few", "first row's keys for all", "no mask"]
)
def test_the_self_check_catches_a_broken_attention(
    model_folder: Callable[[str], Path], broken: Callable[[str], None], bug: str, dtype: str
) -> None:
    broken(bug)
    with pytest.raises(ModelLoadError, match="differ from its own attention"):
        load(model_folder("llama"), dtype)


def test_a_model_whose_layers_differ_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    folder, forward = save_model(tmp_path), LlamaAttention.forward

    def narrow_second_layer(self: Any, hidden_states: Any, past_key_values: Any = None, **options: Any) -> Any:
        if self.layer_idx == 1 and past_key_values is not None:
            past_key_values.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 1)
            past_key_values = None
        return forward(self, hidden_states, past_key_values=past_key_values, **options)

    monkeypatch.setattr(LlamaAttention, "forward", narrow_second_layer)
    with pytest.raises(ModelLoadError, match="do not share one KV shape"):
        load(folder)


def test_a_probe_leaves_no_kv_behind(loaded: Callable[..., LoadedModel]) -> None:
    gc.collect()
    gc.disable()
    try:
        probe(loaded().model, 272, CONTEXT_TOKENS)
        assert not [kept for kept in gc.get_objects() if issubclass(type(kept), DynamicCache)]
    finally:
        gc.enable()
