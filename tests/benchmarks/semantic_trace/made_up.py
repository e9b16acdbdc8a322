"""Questions whose vectors are known: one direction for each class, and a little of each wording's own."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.semantic_trace.trace import Pair, Question

DIM = 24
SPREAD = 0.35  # of a wording around its class


def questions(num_classes: int, max_wordings: int, seed: int = 0) -> list[Question]:
    rng = random.Random(seed)
    return [
        Question(f"class {number} wording {wording}", str(number))
        for number in range(num_classes)
        for wording in range(rng.randint(1, max_wordings))
    ]


def pairs(known: Sequence[Question], num: int, seed: int = 0) -> list[Pair]:
    """`num` pairs of each kind; the b of a paraphrase is a wording that no question has."""
    rng = random.Random(seed)
    found = []
    for number in range(num):
        a, other = rng.sample(known, 2)
        found.append(Pair(a.text, f"class {a.class_id} wording new {number}", True))
        if a.class_id != other.class_id:
            found.append(Pair(a.text, f"class {other.class_id} wording other {number}", False))
    return found


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors [len(texts), DIM]."""
    rows = np.stack([_direction(text.split(" wording")[0]) + SPREAD * _direction(text) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _direction(text: str) -> NDArray[np.float64]:
    vector = np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIM)
    return vector / np.linalg.norm(vector)
