"""The weights that llama.cpp gets are those of the folder; read back with its authors' own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.peers.answer import PeerError
from benchmarks.peers.folder import write_model
from benchmarks.peers.gguf import write_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny", tmp_path_factory.mktemp("model"), device="cpu", context_tokens=128)


@pytest.fixture(scope="module")
def reader(folder: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(write_gguf(folder, folder / "model.gguf"))


def test_every_weight_is_in_the_file_once(folder: Path, reader: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight", None)  # tied: the embeddings serve for both
    assert len(reader.tensors) == len(weights)
    sums = sorted(float(np.abs(weight).sum()) for weight in weights.values())
    assert sorted(float(np.abs(tensor.data).sum()) for tensor in reader.tensors) == pytest.approx(sums)


def test_rotated_rows_stand_in_pairs(folder: Path, reader: Any) -> None:
    [found] = [tensor.data for tensor in reader.tensors if tensor.name == "blk.0.attn_q.weight"]
    ours = load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    heads, size = 4, ours.shape[0] // 4
    for head in range(heads):
        for pair in range(size // 2):
            first = head * size + 2 * pair
            assert np.array_equal(found[first], ours[head * size + pair])
            assert np.array_equal(found[first + 1], ours[head * size + pair + size // 2])


def test_tokens_are_named_by_their_numbers(reader: Any) -> None:
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert bytes(tokens.parts[tokens.data[11]]).decode() == "Ġ11"
    assert len(tokens.data) == 512


def test_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    config = (folder / "config.json").read_text().replace("LlamaForCausalLM", "GPT2LMHeadModel")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(PeerError, match=r"not \['GPT2LMHeadModel'\]"):
        write_gguf(tmp_path, tmp_path / "model.gguf")
