"""Exact nearest stored questions, for arms that store different things over one stream.

One pass ranks the nearest earlier questions of every question; an arm walks down the ranks and takes what it has
stored. Where the ranks end too early, it searches everything it has stored, so the answer is always exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Ranks kept of each question. An arm that serves (and so does not store) a fifth of its requests seldom needs more.
DEPTH = 64
_BLOCK = 256


class Neighbour(NamedTuple):
    """A stored question by its place in the stream, and its cosine."""

    at: int
    score: float


class Ranks:
    """The nearest earlier questions of each question of a stream; `vectors` are unit vectors [n, dim]."""

    def __init__(self, vectors: NDArray[np.float32], depth: int = DEPTH) -> None:
        num = vectors.shape[0]
        self.vectors = vectors
        self.at = np.full((num, depth), -1, dtype=np.int32)
        self.scores = np.zeros((num, depth), dtype=np.float32)
        for start in range(0, num, _BLOCK):
            block = vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T
            for row, scores in enumerate(block):
                earlier = scores[: start + row]
                best = _best(earlier, depth)
                self.at[start + row, : best.shape[0]] = best
                self.scores[start + row, : best.shape[0]] = earlier[best]


class Stored:
    """What one arm has stored of the stream so far."""

    def __init__(self, ranks: Ranks, preloaded: Sequence[int] = ()) -> None:
        self._ranks = ranks
        self._is_stored = np.zeros(ranks.vectors.shape[0], dtype=bool)
        self._is_stored[list(preloaded)] = True

    def add(self, at: int) -> None:
        self._is_stored[at] = True

    def all(self) -> list[int]:
        return np.flatnonzero(self._is_stored).tolist()

    def nearest(self, asked: int, k: int) -> list[Neighbour]:
        """The k nearest of what is stored and came earlier in the stream, best first; ties to the earlier one."""
        ranked = self._ranks.at[asked]
        is_complete = ranked[-1] < 0
        rows = np.flatnonzero((ranked >= 0) & self._is_stored[ranked])[:k]
        if rows.shape[0] == k or is_complete:
            return [
                Neighbour(at, score)
                for at, score in zip(ranked[rows].tolist(), self._ranks.scores[asked, rows].tolist(), strict=True)
            ]
        stored = np.flatnonzero(self._is_stored[:asked])
        scores = self._ranks.vectors[stored] @ self._ranks.vectors[asked]
        best = _best(scores, k)
        return [Neighbour(at, score) for at, score in zip(stored[best].tolist(), scores[best].tolist(), strict=True)]


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Places of the k highest, best first; of equal ones the first come first."""
    if scores.shape[0] > k:
        kth = np.partition(scores, scores.shape[0] - k)[scores.shape[0] - k]
        kept = np.flatnonzero(scores >= kth)
    else:
        kept = np.arange(scores.shape[0])
    return kept[np.argsort(-scores[kept], kind="stable")][:k]
