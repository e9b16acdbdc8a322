"""Nearest neighbours by cosine: exact, in memory, one matrix for each scope and embedder. SQLite is the truth."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semcache.store.incidents import LOG

FIRST_ROWS = 64
MAX_DIM = 8192


class Partition(NamedTuple):
    """What must be equal before similarity is looked at."""

    fingerprint: str
    context_key: str
    params_key: str
    embedder: str


Row = tuple[str, tuple[str, str, str, str], bytes]


def unit(vector: np.ndarray) -> NDArray[np.float32] | None:
    """The vector at length 1, or None when it has no direction (wrong shape, zero, NaN or infinite)."""
    if vector.ndim != 1 or not 1 <= vector.shape[0] <= MAX_DIM:
        return None
    wide = vector.astype(np.float64)
    norm = float(np.sqrt(wide @ wide))
    if not np.isfinite(norm) or norm == 0.0:
        return None
    return (wide / norm).astype(np.float32)


class _Matrix:
    """Unit vectors of one embedder in one scope, contiguous; a removed row is filled with the last one."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.ids: list[str] = []
        self._rows: NDArray[np.float32] = np.empty((FIRST_ROWS, dim), dtype=np.float32)
        self._partitions: NDArray[np.int32] = np.empty(FIRST_ROWS, dtype=np.int32)
        self._interned: dict[Partition, int] = {}
        self._position: dict[str, int] = {}

    def add(self, entry_id: str, partition: Partition, vector: NDArray[np.float32]) -> None:
        at = self._position.get(entry_id)
        if at is None:
            at = len(self.ids)
            if at == self._rows.shape[0]:
                self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
                self._partitions = np.concatenate([self._partitions, np.empty_like(self._partitions)])
            self.ids.append(entry_id)
            self._position[entry_id] = at
        self._rows[at] = vector
        self._partitions[at] = self._interned.setdefault(partition, len(self._interned))

    def remove(self, entry_id: str) -> None:
        at = self._position.pop(entry_id, None)
        if at is None:
            return
        last = len(self.ids) - 1
        if at != last:
            self._rows[at] = self._rows[last]
            self._partitions[at] = self._partitions[last]
            self.ids[at] = self.ids[last]
            self._position[self.ids[at]] = at
        self.ids.pop()

    def has(self, partition: Partition | None) -> bool:
        num = len(self.ids)
        if partition is None:
            return num > 0
        return bool((self._partitions[:num] == self._interned.get(partition, -1)).any())

    def nearest(self, query: NDArray[np.float32], k: int, partition: Partition | None) -> list[tuple[str, float]]:
        num = len(self.ids)
        scores = self._rows[:num] @ query
        if partition is None:
            rows = np.arange(num)
        else:
            rows = np.flatnonzero(self._partitions[:num] == self._interned.get(partition, -1))
            scores = scores[rows]
        if rows.shape[0] > k:
            # Everything that ties with the k-th best stays until ids decide, so that the result is deterministic.
            kth = np.partition(scores, rows.shape[0] - k)[rows.shape[0] - k]
            rows, scores = rows[scores >= kth], scores[scores >= kth]
        found = [(self.ids[row], float(score)) for row, score in zip(rows.tolist(), scores, strict=True)]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]


class VectorIndex:
    """All scopes; a scope is read from SQLite when it is first used. Thread-safe."""

    def __init__(self, load: Callable[[str], Iterable[Row]]) -> None:
        self._load = load
        self._scopes: dict[str, dict[str, _Matrix]] = {}  # scope, embedder
        # Taken before the database lock, never while holding it.
        self._lock = threading.Lock()

    def add(self, scope: str, entry_id: str, partition: Partition, vector: np.ndarray) -> bool:
        """False for a vector that has no direction or another dimension than its embedder's others."""
        with self._lock:
            return self._add(self._matrices(scope), entry_id, partition, vector)

    def remove(self, scope: str, entry_id: str) -> None:
        with self._lock:
            for matrix in self._scopes.get(scope, {}).values():
                matrix.remove(entry_id)

    def has(self, scope: str, partition: Partition | None) -> bool:
        """Whether a search could find anything at all."""
        with self._lock:
            return any(matrix.has(partition) for matrix in self._matrices(scope).values())

    def nearest(
        self, scope: str, vector: np.ndarray, k: int, partition: Partition | None, embedder: str | None = None
    ) -> list[tuple[str, float]]:
        """The k best (entry id, cosine) of a scope, best first; a partition also fixes the embedder."""
        query = unit(vector)
        if query is None or k <= 0:
            return []
        embedder = partition.embedder if partition is not None else embedder
        with self._lock:
            found = [
                pair
                for name, matrix in self._matrices(scope).items()
                if embedder in (None, name) and matrix.dim == query.shape[0]
                for pair in matrix.nearest(query, k, partition)
            ]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]

    def forget_all(self) -> None:
        """Start over from SQLite."""
        with self._lock:
            self._scopes.clear()

    def _matrices(self, scope: str) -> dict[str, _Matrix]:
        if scope not in self._scopes:
            matrices: dict[str, _Matrix] = {}
            for entry_id, partition, blob in self._load(scope):
                is_row = isinstance(blob, bytes) and len(blob) % 4 == 0  # a damaged row can hold anything
                vector = np.frombuffer(blob, dtype="<f4") if is_row else np.empty(0, dtype=np.float32)
                if not self._add(matrices, entry_id, Partition(*partition), vector):
                    LOG.warning("entry %s: its embedding has no direction; it has no neighbours", entry_id)
            self._scopes[scope] = matrices
        return self._scopes[scope]

    @staticmethod
    def _add(matrices: dict[str, _Matrix], entry_id: str, partition: Partition, vector: np.ndarray) -> bool:
        row = unit(vector)
        if row is None:
            return False
        matrix = matrices.setdefault(partition.embedder, _Matrix(row.shape[0]))
        if matrix.dim != row.shape[0]:
            return False
        matrix.add(entry_id, partition, row)
        return True
