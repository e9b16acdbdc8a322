"""Where model files are found, and what is said when they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from semcache.daemon.engine.source import find_model_folder, read_config, weight_files
from semcache.errors import ModelLoadError


def silent(stage: str, share: float | None) -> None:
    pass


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache and a hub that cannot be reached."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_local_folder_is_used_as_it_is(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llama")
    assert find_model_folder(str(folder), silent) == folder.resolve()
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]
    assert read_config(folder)["model_type"] == "llama"


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-model", "a/b/c"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelLoadError, match=r"no folder .*give an existing folder or a hub id"):
        find_model_folder(name, silent)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="is not a folder"):
        find_model_folder(str(tmp_path / "model.gguf"), silent)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        find_model_folder(str(tmp_path), silent)


@pytest.mark.parametrize("weights", [None, "pytorch_model.bin"])
def test_only_safetensors_count_as_weights(tmp_path: Path, weights: str | None) -> None:
    (tmp_path / "config.json").write_text("{}")
    if weights:
        (tmp_path / weights).write_bytes(b"pickle")
    with pytest.raises(ModelLoadError, match=r"no \*\.safetensors weights .*convert the model"):
        find_model_folder(str(tmp_path), silent)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_an_unreadable_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.usefixtures("no_hub")
def test_a_hub_id_without_a_hub_says_what_to_do() -> None:
    with pytest.raises(ModelLoadError, match="not in the hub cache, and the hub cannot be reached") as refusal:
        find_model_folder("someone/some-model", silent)
    assert "give its folder, or use 'mini'" in refusal.value.message
    assert "\n" not in refusal.value.message


def test_a_name_that_can_be_neither() -> None:
    with pytest.raises(ModelLoadError, match="it is not a hub id"):
        find_model_folder("what is this?", silent)
