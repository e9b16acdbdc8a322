"""KV in RAM over KV on disk. RAM holds only what has a row, so that a deleted block is gone from both."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semcache.store.blocks import BlockKey, BlockRow, Blocks, Owner
from semcache.store.database import Database
from semcache.store.disk import DiskTier
from semcache.store.evict import LOW_WATER, Order, Use
from semcache.store.incidents import Incidents
from semcache.store.tensors import DamageError, Stored


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

    def __init__(self, limit_bytes: int, order: Order) -> None:
        self._limit_bytes = limit_bytes
        self._order = order
        self._items: dict[str, _Item] = {}
        self._uses: dict[str, Use] = {}
        self._used_bytes = 0
        self._tick = 0
        self._lock = threading.Lock()
        self.evictions = 0

    def get(self, row: BlockRow) -> Stored | None:
        """The tensors of exactly this row, not of another file that once had the same hash."""
        with self._lock:
            item = self._items.get(row.hash)
            if item is None or item.checksum != row.checksum:
                return None
            self._tick += 1
            use = self._uses[row.hash]
            self._uses[row.hash] = Use(use.added, self._tick, use.hits + 1)
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
            self._tick += 1
            self._items[row.hash] = _Item(stored, row.checksum, row.user)
            self._uses[row.hash] = Use(self._tick, self._tick, 0)
            self._used_bytes += stored.size_bytes
            if self._used_bytes > self._limit_bytes:
                self._evict(keep=row.hash)

    def _evict(self, keep: str) -> None:
        for hash_ in sorted(self._uses, key=lambda hash_: self._order.ram(self._uses[hash_])):
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


class Tiers:
    """Where KV is kept: look in RAM, then on disk; write to both. Nothing here raises for what a machine does."""

    def __init__(
        self,
        ram: RamTier,
        disk: DiskTier,
        *,
        db: Database,
        blocks: Blocks,
        incidents: Incidents,
        clock: Callable[[], float],
    ) -> None:
        self.ram = ram
        self.disk = disk
        self._db = db
        self._blocks = blocks
        self._incidents = incidents
        self._clock = clock

    def load(self, keys: Sequence[BlockKey]) -> list[Stored]:
        """The longest leading run of `keys` that is present and verified."""
        rows = self.find(keys)
        run: list[tuple[BlockRow, Stored]] = []
        for key in keys:
            row = rows.get(key.hash)
            if row is None:
                break
            if not row.matches(key):
                self._incidents.damage("hash_collisions", f"block {key.hash[:12]}", "its row is about other tokens")
                break
            stored = self.ram.get(row) or self._read(row)
            if stored is None:
                break
            run.append((row, stored))
        return self._settle(run)

    def _read(self, row: BlockRow) -> Stored | None:
        try:
            return self.disk.read(row)
        except DamageError:
            return self._read_or_drop(row)
        except OSError as error:
            self._incidents.failure("read_failures", f"block {row.hash[:12]}", error)
        return None

    def _read_or_drop(self, row: BlockRow) -> Stored | None:
        """A second read, under the lock; what is damaged then is counted and deleted."""
        try:
            with self._db.lock:
                try:
                    return self.disk.read_alone(row)
                except DamageError as damage:
                    self._incidents.damage("damaged_blocks", f"block {row.hash[:12]}", damage)
                    self.delete([row])
        except (OSError, sqlite3.Error) as error:
            self._incidents.failure("read_failures", f"block {row.hash[:12]}", error)
        return None

    def _settle(self, run: list[tuple[BlockRow, Stored]]) -> list[Stored]:
        """Count the uses, and keep in RAM what still has its row."""
        stored_run = [stored for _, stored in run]
        if not run:
            return stored_run
        try:
            with self._db.lock:  # between this look at the rows and RAM nobody may delete them
                live = self._blocks.touch([row for row, _ in run], self._clock())
                for row, stored in run:
                    if row.hash in live:
                        self.ram.put(row, stored)
        except sqlite3.Error as error:
            self._incidents.failure("write_failures", "last use of blocks", error)
        return stored_run

    def find(self, keys: Sequence[BlockKey]) -> dict[str, BlockRow]:
        """Live rows by hash; none when the database cannot say."""
        try:
            return self._blocks.find([key.hash for key in keys], self._clock()) if keys else {}
        except sqlite3.Error as error:
            self._incidents.failure("read_failures", "blocks", error)
            return {}

    def put(self, key: BlockKey, stored: Stored, owner: Owner, compute_ms: float) -> BlockRow | None:
        """The new row, or None when it cannot be written."""
        now_s = self._clock()
        return self.disk.write(key, stored, owner, now_s=now_s, compute_ms=compute_ms, published=self.ram.put)

    def delete(self, rows: Sequence[BlockRow]) -> list[BlockRow]:
        """Delete from both; returns the rows that were there and are gone. May raise sqlite3.Error."""
        deleted = self.disk.delete(rows)
        self.ram.discard(deleted)
        return deleted
