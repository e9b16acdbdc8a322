"""Loading: what is described, and every sentence with which a model is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semcache.daemon.engine.model import LoadedModel
from semcache.errors import ModelLoadError
from tests.daemon.engine.conftest import CONTEXT_TOKENS, edit_config, load


@pytest.fixture
def folder(tmp_path: Path, model_folder: Callable[[str], Path]) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return shutil.copytree(model_folder("llama"), tmp_path / "copy")


def test_what_is_loaded_is_described(loaded: Callable[..., LoadedModel], model_folder: Callable[[str], Path]) -> None:
    info = loaded("llama", "bfloat16").info
    assert (info.num_layers, info.num_kv_heads, info.key_dim, info.value_dim) == (2, 2, 16, 16)
    assert info.kv_bytes_per_token == 2 * 2 * (16 + 16) * 2
    assert info.weights_bytes == 2 * info.num_parameters
    assert (info.vocab_size, info.context_tokens) == (272, CONTEXT_TOKENS)
    assert info.eos_token_ids == (257,)
    assert info.pad_token_id == 257
    assert info.architecture == "LlamaForCausalLM"
    assert info.folder_id == f"llama-{info.fingerprint[:12]}"
    assert loaded("llama").info.fingerprint != info.fingerprint  # answers in another dtype are other answers


def test_the_default_dtype_on_cpu_is_float32(folder: Path) -> None:
    assert load(folder, "auto", device="auto").info.dtype == "float32" or torch.cuda.is_available()


def test_a_cap_shortens_the_context(folder: Path) -> None:
    assert load(folder, max_context_tokens=100).info.context_tokens == 100


def test_progress_is_told(folder: Path) -> None:
    stages: list[str] = []
    load(folder, progress=lambda stage, share: stages.append(stage))
    assert [stage.split()[0] for stage in stages] == ["loading", "checking"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "tpu"}, "model.device = 'tpu' is not a device"),
        ({"device": "meta"}, "model.device = 'meta' is not supported"),
        ({"dtype": "int8"}, "model.dtype = 'int8' is not supported"),
    ],
)
def test_settings_that_do_not_exist(folder: Path, options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ModelLoadError, match=sentence):
        load(folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_card_names_the_setting(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="torch sees no CUDA device; use auto or cpu"):
        load(folder, device="cuda")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "quux"}, "does not know its architecture 'quux'"),
        ({"model_type": "quux", "auto_map": {"AutoConfig": "x.Y"}}, "auto_map.*never runs"),
        ({"model_type": "vit"}, "'vit' is not a causal language model"),
        ({"num_hidden_layers": 3}, "files have 9 missing keys, the first is model.layers.2"),
        ({"vocab_size": 300}, "mismatched keys, the first is"),
        ({"num_attention_heads": "x"}, "config.json is not valid"),
    ],
)
def test_configurations_that_cannot_be_served(folder: Path, changes: dict[str, object], sentence: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelLoadError, match=f"(?s){sentence}"):
        load(folder)


def test_every_refusal_names_the_model_once(folder: Path) -> None:
    edit_config(folder, model_type="quux")
    with pytest.raises(ModelLoadError) as refusal:
        load(folder)
    assert refusal.value.message.startswith(f"model {folder} cannot be served: ")
    assert "\n" not in refusal.value.message


def test_weights_cut_short_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match="weights cannot be loaded"):
        load(folder)


def test_nan_weights_fail_the_self_check(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="logits through our KV slots differ"):
        load(folder)
