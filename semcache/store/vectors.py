"""Nearest neighbours by cosine: exact, in memory, one matrix for each scope and embedder. SQLite is the truth."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semcache.store.codes import Codes, can_code
from semcache.store.incidents import LOG
from semcache.store.numbering import Numbering

FIRST_ROWS = 8
MAX_DIM = 8192
PAGE_ROWS = 4096  # read from SQLite at once
# From here on memory limits a search, and one over codes is three times as fast.
CODED_ROWS = 8192


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


def _units(blob: bytes, dim: int) -> NDArray[np.float32]:
    """The vectors of a blob at length 1; one that has no direction is not finite."""
    wide = np.frombuffer(blob, dtype="<f4").reshape(-1, dim).astype(np.float64)
    with np.errstate(all="ignore"):
        wide /= np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
        return wide.astype(np.float32)


class Scores(NamedTuple):
    """Cosines of a query with every row, each off by `slack` at most."""

    query: NDArray[np.float32]
    values: NDArray[np.float32]
    slack: float


class _Matrix:
    """Unit vectors of one embedder in one scope, contiguous; a removed row is filled with the last one.

    It takes memory by the rows that it has, not by those that it ever had: a scope lives as long as its user.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.ids: list[str] = []
        self._rows: NDArray[np.float32] = np.empty((FIRST_ROWS, dim), dtype=np.float32)
        self._partitions: NDArray[np.int32] = np.empty(FIRST_ROWS, dtype=np.int32)
        self._interned: Numbering[Partition] = Numbering()
        self._position: dict[str, int] = {}
        self._codes: Codes | None = None

    def add(self, entry_ids: Sequence[str], partitions: Sequence[Partition], vectors: NDArray[np.float32]) -> None:
        """One row each; an id that is there already gets the new row."""
        first, replaced = len(self.ids), set()
        self._make_room(first + len(entry_ids))
        for entry_id, partition, vector in zip(entry_ids, partitions, vectors, strict=True):
            at = self._position.setdefault(entry_id, len(self.ids))
            if at == len(self.ids):
                self.ids.append(entry_id)
            else:
                self._interned.let_go(int(self._partitions[at]))
                if at < first:
                    replaced.add(at)
            self._rows[at] = vector
            self._partitions[at] = self._interned.hold(partition)
        if self._codes is None and can_code(self.dim) and len(self.ids) >= CODED_ROWS:
            self._codes, first, replaced = Codes(self.dim), 0, set()
        if self._codes is not None:
            self._codes.put(first, self._rows[first : len(self.ids)])
            for at in replaced:
                self._codes.put(at, self._rows[at : at + 1])

    def _make_room(self, num: int) -> None:
        had = self._rows.shape[0]
        if num > had:
            more = max(had, num - had)
            self._rows = np.concatenate([self._rows, np.empty((more, self.dim), dtype=np.float32)])
            self._partitions = np.concatenate([self._partitions, np.empty(more, dtype=np.int32)])

    def remove(self, entry_id: str) -> None:
        at = self._position.pop(entry_id, None)
        if at is None:
            return
        self._interned.let_go(int(self._partitions[at]))
        last = len(self.ids) - 1
        if at != last:
            self._rows[at] = self._rows[last]
            self._partitions[at] = self._partitions[last]
            if self._codes is not None:
                self._codes.move(last, at)
            self.ids[at] = self.ids[last]
            self._position[self.ids[at]] = at
        self.ids.pop()
        if FIRST_ROWS < self._rows.shape[0] >= 4 * len(self.ids):
            self._shrink()

    def _shrink(self) -> None:
        """Half as many rows as there is room for: far from growing and from shrinking again."""
        num = len(self.ids)
        spare = max(FIRST_ROWS, 2 * num) - num
        self._rows = np.concatenate([self._rows[:num], np.empty((spare, self.dim), dtype=np.float32)])
        self._partitions = np.concatenate([self._partitions[:num], np.empty(spare, dtype=np.int32)])
        self._position = dict(self._position)  # a dictionary that shrinks keeps its room; a copy does not
        if self._codes is not None and num < CODED_ROWS // 2:
            self._codes = None
        elif self._codes is not None:
            self._codes.cut(num)

    def has(self, partition: Partition | None) -> bool:
        if partition is None:
            return bool(self.ids)
        return self._interned.get(partition) is not None

    def scores(self, query: NDArray[np.float32]) -> Scores:
        """The cosine of every row, exact for few rows."""
        num = len(self.ids)
        if self._codes is None or num < CODED_ROWS:
            return Scores(query, self._rows[:num] @ query, 0.0)
        return Scores(query, *self._codes.scores(query, num))

    def best(self, found: Scores, k: int, partition: Partition | None) -> list[tuple[str, float]]:
        """The k best (entry id, exact cosine) of a partition, or of all rows; equal scores are ordered by id."""
        scores = found.values
        rows: NDArray[np.intp] | None = None
        if partition is not None:
            number = self._interned.get(partition)
            if number is None:
                return []
            rows = np.flatnonzero(self._partitions[: scores.shape[0]] == number)
            if rows.shape[0] == scores.shape[0]:
                rows = None  # everything: spares a copy of every score
            else:
                scores = scores[rows]
        num = scores.shape[0]
        if num > k:
            # Everything that ties with the k-th best stays until ids decide, so that the result is deterministic.
            # The k-th best is off by `slack` at most, and so is whoever might be better.
            kth = scores.max() if k == 1 else np.partition(scores, num - k)[num - k]
            kept = np.flatnonzero(scores >= kth - 2 * found.slack)
        else:
            kept = np.arange(num)
        names = kept if rows is None else rows[kept]
        cosines = self._rows[names] @ found.query if found.slack else scores[kept]
        named = [(self.ids[row], float(score)) for row, score in zip(names.tolist(), cosines, strict=True)]
        return sorted(named, key=_by_score)[:k]


def _by_score(found: tuple[str, float]) -> tuple[float, str]:
    return -found[1], found[0]


class _Scope:
    """One scope's matrices by embedder; None until they are read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.matrices: dict[str, _Matrix] | None = None


class VectorIndex:
    """All scopes; a scope is read from SQLite when it is first used. Thread-safe."""

    def __init__(self, load: Callable[[str], Iterable[Row]]) -> None:
        self._load = load
        self._scopes: dict[str, _Scope] = {}
        # Over the dictionary only: a large scope takes seconds to read, for which users of others must not wait. No
        # scope's own lock is taken while holding it; both before the database lock, never while holding that.
        self._lock = threading.Lock()

    def add(self, scope: str, entry_id: str, partition: Partition, vector: np.ndarray) -> bool:
        """False for a vector that has no direction or another dimension than its embedder's others."""
        row = unit(vector)
        if row is None:
            return False
        with self._opened(scope) as matrices:
            return self._add(matrices, [entry_id], [partition], row[None])

    def remove(self, scope: str, entry_id: str) -> None:
        with self._lock:
            known = self._scopes.get(scope)
        if known is None:
            return
        with known.lock:
            for embedder, matrix in list((known.matrices or {}).items()):
                matrix.remove(entry_id)
                if known.matrices and not matrix.ids:
                    del known.matrices[embedder]

    def let_go(self, scope: str) -> None:
        """Remember a scope no longer that is empty by now; what SQLite may have of it is read at its next use.

        For rows that are deleted: one that is only passed over (expired, damaged) would be read, and met, again.
        """
        with self._lock:
            known = self._scopes.get(scope)
        if known is None:
            return
        with known.lock:
            if known.matrices is None or known.matrices:
                return
            # Whoever waits for this lock adds a row that is in SQLite already, from where the next use reads it.
            with self._lock:
                if self._scopes.get(scope) is known:
                    del self._scopes[scope]

    def has(self, scope: str, partition: Partition | None) -> bool:
        """Whether a search could find anything at all."""
        with self._opened(scope) as matrices:
            return any(matrix.has(partition) for matrix in matrices.values())

    def nearest(
        self, scope: str, vector: np.ndarray, k: int, partition: Partition | None, embedder: str | None = None
    ) -> list[tuple[str, float]]:
        """The k best (entry id, cosine) of a scope, best first; a partition also fixes the embedder."""
        query = unit(vector)
        if query is None or k <= 0:
            return []
        embedder = partition.embedder if partition is not None else embedder
        with self._opened(scope) as matrices:
            found = [
                pair
                for name, matrix in matrices.items()
                if embedder in (None, name) and matrix.dim == query.shape[0]
                for pair in matrix.best(matrix.scores(query), k, partition)
            ]
        return sorted(found, key=_by_score)[:k]

    def nearest_and_donor(
        self, scope: str, vector: np.ndarray, k: int, partition: Partition
    ) -> tuple[list[tuple[str, float]], tuple[str, float] | None]:
        """`nearest` of a partition, and the nearest of all partitions of its embedder, from one matrix product."""
        query = unit(vector)
        with self._opened(scope) as matrices:
            matrix = matrices.get(partition.embedder)
            if query is None or matrix is None or matrix.dim != query.shape[0]:
                return [], None
            scores = matrix.scores(query)
            found = matrix.best(scores, k, partition) if k > 0 else []
            donors = matrix.best(scores, 1, None)
        return found, donors[0] if donors else None

    @contextmanager
    def _opened(self, scope: str) -> Iterator[dict[str, _Matrix]]:
        """A scope's matrices for one thread, read where they are not yet; a read that fails leaves them unread."""
        with self._lock:
            known = self._scopes.setdefault(scope, _Scope())
        with known.lock:
            if known.matrices is None:
                matrices: dict[str, _Matrix] = {}
                rows = iter(self._load(scope))
                while page := list(islice(rows, PAGE_ROWS)):
                    self._add_page(matrices, page)
                known.matrices = matrices
            yield known.matrices

    def _add_page(self, matrices: dict[str, _Matrix], page: Sequence[Row]) -> None:
        """Many stored rows at once; a hundred thousand one by one would take many seconds."""
        alike: dict[tuple[str, int], list[Row]] = {}
        for row in page:
            _, partition, blob = row
            is_vector = isinstance(blob, bytes) and len(blob) % 4 == 0  # a damaged row can hold anything
            num_bytes = len(blob) if is_vector and 0 < len(blob) <= 4 * MAX_DIM else 0
            alike.setdefault((partition[3], num_bytes), []).append(row)
        for (_, num_bytes), rows in alike.items():
            units = _units(b"".join(blob for _, _, blob in rows), num_bytes // 4) if num_bytes else None
            good = np.flatnonzero(np.isfinite(units).all(axis=1)) if units is not None else np.empty(0, dtype=np.intp)
            num_good = good.shape[0]
            if units is not None and num_good:
                found = [rows[at] for at in good.tolist()]
                ids, partitions = [row[0] for row in found], [Partition(*row[1]) for row in found]
                num_good *= self._add(matrices, ids, partitions, units[good])
            if num_good < len(rows):
                LOG.warning("%d entries with an embedding of no direction have no neighbours", len(rows) - num_good)

    @staticmethod
    def _add(
        matrices: dict[str, _Matrix],
        entry_ids: Sequence[str],
        partitions: Sequence[Partition],
        vectors: NDArray[np.float32],
    ) -> bool:
        matrix = matrices.setdefault(partitions[0].embedder, _Matrix(vectors.shape[1]))
        if matrix.dim != vectors.shape[1]:
            return False
        matrix.add(entry_ids, partitions, vectors)
        return True
