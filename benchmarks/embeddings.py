"""Unit vectors of many texts with the daemon's own embedder, kept on disk between runs, one file for each model."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semcache.daemon.cache.embedder import DEFAULT, Embedder

Vectors = NDArray[np.float32]
Encode = Callable[[list[str]], Vectors]

BATCH = 256
# A run that is stopped loses at most this many texts.
SAVE_EVERY = 8 * BATCH


def default_cache_dir() -> Path:
    """Where vectors are kept unless a folder is named."""
    from platformdirs import user_cache_path

    return user_cache_path("semcache") / "benchmarks" / "embeddings"


def embed_all(
    texts: Sequence[str], cache_dir: Path | None = None, *, model: str = DEFAULT, encode: Encode | None = None
) -> Vectors:
    """Unit vectors of `texts`, shape [len(texts), dim]; `encode` stands for the model in place of the real one."""
    path = (cache_dir or default_cache_dir()) / f"{hashlib.sha256(model.encode()).hexdigest()[:16]}.npy"
    known = _read(path)
    # By length, so that a batch pads little.
    missing = sorted({text for text in texts if _key(text) not in known}, key=lambda text: (len(text), text))
    if missing:
        encode = encode or load_encoder(model)
        for start in range(0, len(missing), SAVE_EVERY):
            chunk = missing[start : start + SAVE_EVERY]
            vectors = np.asarray(encode(chunk), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            known |= {_key(text): vector for text, vector in zip(chunk, vectors, strict=True)}
            known = _write(path, known)
            print(f"embedded {start + len(chunk)} of {len(missing)} texts", file=sys.stderr, flush=True)
    if not texts:
        return np.empty((0, 0), dtype=np.float32)
    return np.stack([known[_key(text)] for text in texts])


def load_encoder(model: str) -> Encode:
    """The real embedder, in batches; one text at a time would take several times as long."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sentences = Embedder.load(model)._model

    def encode(texts: list[str]) -> Vectors:
        found = sentences.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float32)

    return encode


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32].encode()


def _read(path: Path) -> dict[bytes, Vectors]:
    try:
        rows: NDArray[Any] = np.load(path, allow_pickle=False)
        return dict(zip(rows["key"].tolist(), rows["vector"], strict=True))
    except (OSError, ValueError, IndexError):  # absent, or cut by a full disk: embedded again
        return {}


def _write(path: Path, known: dict[bytes, Vectors]) -> dict[bytes, Vectors]:
    """Everything known, with what another run has written meanwhile."""
    known = _read(path) | known
    dim = next(iter(known.values())).shape[0]
    rows = np.empty(len(known), dtype=[("key", "S32"), ("vector", "<f4", (dim,))])
    rows["key"] = list(known)
    rows["vector"] = np.stack(list(known.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, rows)
    temporary.replace(path)
    return known
