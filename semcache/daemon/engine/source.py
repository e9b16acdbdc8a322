"""Where a model's files are: the built-in model, a local folder, or a hub id downloaded into the hub cache.

Only safetensors weights, JSON, tokenizer files and chat templates are ever fetched: nothing that could run code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import semcache
from semcache.errors import ModelLoadError

Progress = Callable[[str, float | None], None]

BUILT_IN = "mini"
_MAX_QUOTED = 200
_ALLOWED_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt"]


def find_model_folder(name: str, progress: Progress) -> Path:
    """The folder with the model's config, tokenizer and safetensors weights; downloads a hub id when it must."""
    if name == BUILT_IN:
        folder = Path(semcache.__file__).parent / "assets" / BUILT_IN
    elif Path(name).expanduser().exists():
        folder = Path(name).expanduser().resolve()
    elif name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ModelLoadError(f"no folder {name}; give an existing folder or a hub id like 'Qwen/Qwen2.5-0.5B-Instruct'")
    else:
        folder = _hub_folder(name, progress)
    return _checked(name, folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The raw config.json; `{}` is never returned for a file that cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {folder / 'config.json'}: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{folder / 'config.json'} is not a JSON object")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files, in name order."""
    return sorted(folder.glob("*.safetensors"))


def _checked(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelLoadError(f"{name} is not a folder: a model is a folder with config.json and *.safetensors")
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"no config.json in {folder}, so it is not a Hugging Face model folder")
    if not weight_files(folder):
        raise ModelLoadError(
            f"no *.safetensors weights in {folder}; pickled weights (*.bin, *.pt) are never loaded: "
            "convert the model to safetensors or choose another revision of it"
        )
    return folder


def _hub_folder(name: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        cached = Path(snapshot_download(name, allow_patterns=_ALLOWED_FILES, local_files_only=True))
        if (cached / "config.json").is_file() and weight_files(cached):
            return cached
    except HFValidationError as error:
        raise ModelLoadError(f"no folder {name}, and it is not a hub id: {one_line(error)}") from error
    except LocalEntryNotFoundError:
        pass
    try:
        progress(f"downloading {name}", None)
        bar = _progress_bar(f"downloading {name}", progress)
        return Path(snapshot_download(name, allow_patterns=_ALLOWED_FILES, tqdm_class=bar))
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{name} is gated: accept its licence on https://huggingface.co/{name} and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(f"no folder and no public hub model {name}; check the spelling or set HF_TOKEN") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ModelLoadError(
            f"{name} is no local folder, is not in the hub cache, and the hub cannot be reached "
            f"({one_line(error)}); go online once, copy the model here and give its folder, or use 'mini'"
        ) from error


def _progress_bar(label: str, progress: Progress) -> Any:
    """A silent progress bar class that reports the share of bytes downloaded."""
    from huggingface_hub.utils.tqdm import tqdm

    class ProgressBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            self._num_done = options.get("initial") or 0
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self.total = options.get("total")

        def update(self, n: float | None = 1) -> bool | None:
            self._num_done += n or 0
            if self._counts_bytes and self.total:
                progress(label, min(1.0, self._num_done / self.total))
            return None

    return ProgressBar


def one_line(error: Exception) -> str:
    """What another library said, fit for the end of our sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"
