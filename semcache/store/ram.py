"""The RAM tier: verified tensors within a number of bytes. Knows neither files nor rows' fate; `tiers.py` does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from semcache.store.blocks import BlockRow
from semcache.store.evict import LOW_WATER, Rank, Use
from semcache.store.tensors import Stored


@dataclass(frozen=True)
class TierStatus:
    used_bytes: int
    limit_bytes: int
    items: int


@dataclass(frozen=True)
class _Item:
    stored: Stored
    checksum: str
    user: str


class RamTier:
    """Verified tensors by hash, bounded in bytes. Thread-safe."""

    def __init__(self, limit_bytes: int, order: Rank, clock: Callable[[], float]) -> None:
        self._limit_bytes = limit_bytes
        self._order = order
        self._clock = clock
        self._items: dict[str, _Item] = {}
        self._uses: dict[str, Use] = {}  # least recently used first, which decides between equals
        self._used_bytes = 0
        self._lock = threading.Lock()
        self.evictions = 0

    def get(self, row: BlockRow) -> Stored | None:
        """The tensors of exactly this row, not of another file that once had the same hash."""
        with self._lock:
            item = self._items.get(row.hash)
            if item is None or item.checksum != row.checksum:
                return None
            use = self._uses.pop(row.hash)
            self._uses[row.hash] = replace(use, last_used_s=max(use.last_used_s, self._clock()), hits=use.hits + 1)
            return item.stored

    def put(self, row: BlockRow, stored: Stored) -> None:
        """Keep tensors that nobody else will change; one that is larger than the tier is not kept."""
        if stored.size_bytes > self._limit_bytes:
            return
        with self._lock:
            had = self._items.get(row.hash)
            if had is not None and had.checksum == row.checksum:
                return
            self._drop(row.hash)
            now_s = self._clock()
            self._items[row.hash] = _Item(stored, row.checksum, row.user)
            self._uses[row.hash] = Use(now_s, now_s, row.hits, stored.size_bytes, row.compute_ms)
            self._used_bytes += stored.size_bytes
            if self._used_bytes > self._limit_bytes:
                self._evict(keep=row.hash)

    def _evict(self, keep: str) -> None:
        for hash_ in sorted(self._uses, key=lambda hash_: self._order(self._uses[hash_])):
            if self._used_bytes <= LOW_WATER * self._limit_bytes:
                break
            if hash_ != keep:
                self._drop(hash_)
                self.evictions += 1

    def _drop(self, hash_: str) -> None:
        item = self._items.pop(hash_, None)
        if item is not None:
            del self._uses[hash_]
            self._used_bytes -= item.stored.size_bytes

    def holds(self, row: BlockRow) -> bool:
        """Whether `get` would find it; counts no use."""
        with self._lock:
            item = self._items.get(row.hash)
            return item is not None and item.checksum == row.checksum

    def discard(self, rows: Sequence[BlockRow]) -> None:
        with self._lock:
            for row in rows:
                self._drop(row.hash)

    def status(self) -> TierStatus:
        with self._lock:
            return TierStatus(self._used_bytes, self._limit_bytes, len(self._items))

    def bytes_by_user(self) -> dict[str, int]:
        with self._lock:
            totals: dict[str, int] = {}
            for item in self._items.values():
                totals[item.user] = totals.get(item.user, 0) + item.stored.size_bytes
            return totals
