"""The fingerprint changes with everything that changes the function; numerics with what changes the last bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from semcache.daemon.engine.fingerprint import model_fingerprint, numerics
from semcache.daemon.engine.machine import processor_digest
from semcache.daemon.engine.packed import BOTH, PACKED, PLAIN
from tests.daemon.engine.conftest import edit_config


@pytest.fixture
def folder(tmp_path: Path, model_folder: Callable[[str], Path]) -> Path:
    return shutil.copytree(model_folder("llama"), tmp_path / "copy")


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_copy_has_the_same_fingerprint(folder: Path, model_folder: Callable[[str], Path]) -> None:
    (folder / "README.md").write_text("notes do not count")
    assert model_fingerprint(folder, "float32") == model_fingerprint(model_folder("llama"), "float32")


@pytest.mark.parametrize("place", ["header", "first page", "middle", "last byte"])
def test_one_flipped_weight_byte_changes_it(folder: Path, place: str) -> None:
    before, path = model_fingerprint(folder, "float32"), folder / "model.safetensors"
    size_bytes = path.stat().st_size
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    spread = size_bytes - header_bytes - 4096  # sampled pages are spread evenly behind the header
    middle = header_bytes + spread * 32 // 63 + 10
    offset = {"header": 20, "first page": header_bytes, "middle": middle, "last byte": size_bytes - 1}[place]
    flip(path, offset)
    assert model_fingerprint(folder, "float32") != before


def test_a_changed_configuration_changes_it(folder: Path) -> None:
    before = model_fingerprint(folder, "float32")
    edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 12345.0})
    assert model_fingerprint(folder, "float32") != before


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_a_changed_tokenizer_or_template_changes_it(folder: Path, name: str) -> None:
    before = model_fingerprint(folder, "float32")
    (folder / name).write_text((folder / name).read_text() + " ")
    changed = model_fingerprint(folder, "float32")
    (folder / name).unlink()
    assert len({before, changed, model_fingerprint(folder, "float32")}) == 3


@pytest.mark.parametrize("name", ["generation_config.json", "merges.txt", "special_tokens_map.json"])
def test_whatever_else_decides_tokens_changes_it(folder: Path, name: str) -> None:
    before = model_fingerprint(folder, "float32")
    (folder / name).write_text('{"eos_token_id": [257, 10]}')
    assert model_fingerprint(folder, "float32") != before


def test_another_dtype_is_another_function(folder: Path) -> None:
    assert model_fingerprint(folder, "float32") != model_fingerprint(folder, "bfloat16")


def test_every_tensor_is_looked_at(tmp_path: Path) -> None:
    weights = {f"layer.{i}": torch.full((256, 64), float(i + 1)) for i in range(40)}
    save_file(weights, tmp_path / "model.safetensors")
    seen = {model_fingerprint(tmp_path, "float32")}
    for name, weight in weights.items():
        save_file({**weights, name: torch.zeros_like(weight)}, tmp_path / "model.safetensors")
        seen.add(model_fingerprint(tmp_path, "float32"))
    assert len(seen) == 41


def test_a_header_that_is_none_has_a_fingerprint_too(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"[]" + path.read_bytes()[10:])
    assert model_fingerprint(folder, "float32")


def test_a_renamed_or_added_weight_file_changes_it(folder: Path) -> None:
    before = model_fingerprint(folder, "float32")
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    assert model_fingerprint(folder, "float32") != before


def test_numerics_name_everything_that_rounds() -> None:
    text = numerics("cpu", "bfloat16", 128, PACKED, "bits")
    assert (
        f"cpu/{torch.backends.cpu.get_cpu_capability()}/{processor_digest()}/threads{torch.get_num_threads()}" in text
    )
    assert f"torch{torch.__version__}" in text
    assert "chunk128" in text
    assert "semcache_slots3" in text
    assert PACKED in text
    assert "bfloat16" in text
    others = [("float32", 128, PACKED), ("bfloat16", 64, PACKED), ("bfloat16", 128, PLAIN), ("bfloat16", 128, BOTH)]
    assert len({text, *(numerics("cpu", *other, "bits") for other in others)}) == 5
    assert text != numerics("cpu", "bfloat16", 128, PACKED, "others")


def test_in_rounding_only_the_dtype_counts() -> None:
    def rounding(dtype: str, chunk_tokens: int, products: str) -> str:
        return numerics("cpu", dtype, chunk_tokens, products, "bits", "rounding")

    text = rounding("bfloat16", 128, PACKED)
    assert text == rounding("bfloat16", 64, PLAIN)
    assert text != rounding("float32", 128, PACKED)
    assert text != numerics("cpu", "bfloat16", 128, PACKED, "bits")
