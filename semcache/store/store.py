"""The store's front door: keeps answers and KV, knows no requests, no HTTP, no models and nobody's rights.

Thread-safe. What a machine does to a cache (full disk, damaged file, locked database) is a miss or a False with a
counter; only opening a folder that cannot be used, and deleting what cannot be deleted, raise.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semcache.errors import StoreError
from semcache.store.answers import Answers
from semcache.store.blocks import BlockKey, Blocks, Owner
from semcache.store.budget import DiskBudget, DiskLimits
from semcache.store.check import Check, CheckResult, sweep
from semcache.store.database import Database
from semcache.store.datadir import DataDir
from semcache.store.disk import DiskTier
from semcache.store.entries import Entries, Entry, where_owner
from semcache.store.evict import ORDERS
from semcache.store.files import Files
from semcache.store.incidents import LOG, Incidents
from semcache.store.migrations import open_database
from semcache.store.tensors import KVSpan, Stored, TailRecord
from semcache.store.tiers import RamTier, Tiers, TierStatus
from semcache.store.usage import HistoryRow, UsageBook, UsageRecord, UsageReport
from semcache.store.vectors import Partition

DATABASE_NAME = "semcache.db"
KV_FOLDER = "kv"

# Shown as 0 before the first one.
COUNTERS = (
    "damaged_blocks", "damaged_entries", "hash_collisions", "evicted_blocks", "evicted_entries", "expired_blocks",
    "expired_entries", "write_failures", "read_failures", "unlink_failures", "refused_embeddings", "swept_files",
)  # fmt: skip


@dataclass(frozen=True)
class StoreLimits:
    """Budgets and orders; a quota or TTL of 0 is none."""

    ram_bytes: int
    disk_bytes: int
    user_quota_bytes: int = 0
    ttl_s: int = 0
    eviction: str = "lru"
    durable: bool = False


class Store:
    """Open one with `Store.open`; one process owns a data directory."""

    def __init__(
        self, folder: DataDir, db: Database, limits: StoreLimits, clock: Callable[[], float], files: Files
    ) -> None:
        self.warnings: list[str] = []
        self.limits = limits
        self._folder = folder
        self._db = db
        self._clock = clock
        self._files = files
        self._incidents = Incidents()
        order = ORDERS[limits.eviction]
        self._blocks = Blocks(db, limits.ttl_s)
        disk = DiskTier(folder.path / KV_FOLDER, db, self._blocks, files, self._incidents, durable=limits.durable)
        ram = RamTier(limits.ram_bytes, order)
        self._tiers = Tiers(ram, disk, db=db, blocks=self._blocks, incidents=self._incidents, clock=clock)
        self._entries = Entries(db, self._incidents)
        self._answers = Answers(self._entries, self._incidents, clock, limits.ttl_s)
        self._usage = UsageBook(db)
        self._budget = DiskBudget(
            DiskLimits(limits.disk_bytes, limits.user_quota_bytes, order),
            db=db, answers=self._answers, tiers=self._tiers, blocks=self._blocks, incidents=self._incidents,
        )  # fmt: skip
        num_swept, stuck = sweep(disk.folder, db, self._blocks, files)
        self._incidents.count("swept_files", num_swept)
        self.warnings += stuck

    @staticmethod
    def open(
        data_dir: Path, limits: StoreLimits, *, clock: Callable[[], float] = time.time, files: Files | None = None
    ) -> Store:
        """Own and open a data directory; StoreError says in one line why that cannot be."""
        if limits.eviction not in ORDERS:
            raise StoreError(f"unknown eviction order {limits.eviction!r}; use one of {', '.join(ORDERS)}")
        folder = DataDir(data_dir)
        path = data_dir / DATABASE_NAME
        with ExitStack() as undo:
            undo.callback(folder.release, clean=False)
            try:
                db, warning = open_database(path, durable=limits.durable, was_clean=folder.was_clean)
                undo.callback(db.close)
                store = Store(folder, db, limits, clock, files or Files())
            except (OSError, sqlite3.Error) as error:
                raise StoreError(f"cannot open {path}: {error}; check the disk and its permissions") from error
            undo.pop_all()
        if warning is not None:
            store.warnings.append(warning)
            LOG.warning(warning)
        return store

    def close(self) -> None:
        """Give the data directory back; afterwards every read is a miss and every write a False."""
        self._db.close()
        self._folder.release(clean=not self._db.is_corrupt)

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._incidents.failure("read_failures", what, error)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeEncodeError) as error:  # text with lone surrogates has no UTF-8
            self._incidents.failure("write_failures", what, error)

    @contextmanager
    def _deleting(self) -> Iterator[None]:
        """Whoever deletes must know when it did not happen."""
        try:
            yield
            self._db.truncate_log()
        except sqlite3.Error as error:
            raise StoreError(f"could not delete everything that was asked: {error}; try again") from error

    # KV

    def load_prefix(self, keys: Sequence[BlockKey]) -> list[KVSpan]:
        """KV of the longest leading run that is present and verified."""
        return [stored for stored in self._tiers.load(keys) if isinstance(stored, KVSpan)]

    def load_tail(self, key: BlockKey) -> TailRecord | None:
        for stored in self._tiers.load([key]):
            if isinstance(stored, TailRecord):
                return stored
        return None

    def missing(self, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """The keys without a live row."""
        rows = self._tiers.find(keys)
        return [key for key in keys if key.hash not in rows]

    def put_block(self, key: BlockKey, span: KVSpan, owner: Owner, compute_ms: float = 0) -> bool:
        """Keep a block; False when it could not be written."""
        assert (key.kind, len(key.token_ids)) == ("block", span.num_tokens), key
        return self._put(key, span, owner, compute_ms)

    def put_tail(self, key: BlockKey, record: TailRecord, owner: Owner, compute_ms: float = 0) -> bool:
        """Keep a full-prompt record; False when it could not be written."""
        assert (key.kind, len(key.token_ids)) == ("tail", record.span.num_tokens), key
        return self._put(key, record, owner, compute_ms)

    def _put(self, key: BlockKey, stored: Stored, owner: Owner, compute_ms: float) -> bool:
        there = self._tiers.find([key]).get(key.hash)
        if there is not None and there.matches(key):
            return True
        row = self._tiers.put(key, stored, owner, compute_ms)
        if row is None:
            return False
        if self._budget.added(owner.user, row.size_bytes):
            self.evict()
        return True

    # Answers

    def find_exact(self, scope: str, request_key: str) -> list[Entry]:
        """Stored answers of the identical request, newest first."""
        with self._reading("answers"):
            return self._entries.find_exact(scope, request_key, self._clock())
        return []

    def nearest(
        self, scope: str, vector: np.ndarray, k: int, partition: Partition | None, *, embedder: str | None = None
    ) -> list[tuple[Entry, float]]:
        """The k entries of a scope whose embeddings are closest, best first, with their cosines."""
        with self._reading("neighbours"):
            return self._answers.nearest(scope, vector, k, partition, embedder)
        return []

    def has_neighbours(self, scope: str, partition: Partition | None) -> bool:
        """Whether `nearest` could find anything; far cheaper than an embedding."""
        with self._reading("neighbours"):
            return self._answers.has_neighbours(scope, partition)
        return False

    def put_entry(self, entry: Entry) -> bool:
        """Keep an answer in place of older ones to the same request; False when it could not be written."""
        with self._writing(f"entry {entry.id}"):
            self._answers.put(entry)
            if self._budget.added(entry.user, entry.size_bytes):
                self.evict()
            return True
        return False

    def touch_entry(self, entry_id: str) -> None:
        """Count a hit."""
        with self._writing("last use of an entry"):
            self._entries.touch(entry_id, self._clock())

    def pin_entry(self, entry_id: str, *, pinned: bool = True) -> bool:
        """Protect an entry from eviction, or stop doing so; False when there is none."""
        with self._writing("pin of an entry"):
            return self._entries.pin(entry_id, pinned=pinned)
        return False

    def get_entry(self, entry_id: str) -> Entry | None:
        with self._reading("entry"):
            return self._entries.by_ids([entry_id], self._clock()).get(entry_id)
        return None

    def list_entries(
        self, *, scopes: Sequence[str] | None = None, user: str | None = None, limit: int = 50, sort: str = "used",
        match: str | None = None,
    ) -> list[Entry]:  # fmt: skip
        """Entries for people to look at; `sort` is one of `entries.SORTS`."""
        with self._reading("entries"):
            return self._entries.listing(
                scopes=scopes, user=user, limit=limit, sort=sort, match=match, now_s=self._clock()
            )
        return []

    # Deleting: nothing of what was deleted stays in the database file or its log

    def delete_entries(self, ids: Sequence[str]) -> int:
        with self._deleting():
            return self._answers.delete(ids)
        return 0

    def clear(
        self, *, scopes: Sequence[str] | None = None, user: str | None = None, namespace: str | None = None
    ) -> tuple[int, int]:
        """Delete what matches every given filter; returns how many entries and blocks."""
        where, params = where_owner(scopes=scopes, user=user, namespace=namespace)
        with self._deleting():
            num_entries = self._answers.delete(self._entries.ids(where, params))
            num_blocks = len(self._tiers.delete(self._blocks.select(where, params)))
            self._budget.refresh()
        return num_entries, num_blocks

    def forget_user(self, user: str) -> tuple[int, int]:
        """Delete everything of a user: entries, blocks, history and sums; and databases that were put aside.

        Returns how many entries and blocks.
        """
        deleted = self.clear(user=user)
        with self._deleting(), self._db.transaction() as connection:
            self._usage.forget(connection, user)
        for path in self._folder.path.glob(f"{DATABASE_NAME}.corrupt-*"):
            self._files.unlink(path)
        return deleted

    # Statistics and upkeep

    def record_request(self, row: UsageRecord) -> None:
        with self._writing("request history"):
            self._usage.record(row)

    def recent_requests(self, limit: int = 50, user: str | None = None) -> list[HistoryRow]:
        with self._reading("request history"):
            return self._usage.recent(limit, user)
        return []

    def usage(self) -> UsageReport:
        with self._reading("usage"):
            return self._usage.report(self._tiers.ram.bytes_by_user())
        return UsageReport.empty()

    def num_entries(self) -> int:
        with self._reading("entries"):
            return self._db.number("SELECT count(*) FROM entries")
        return 0

    def tier_status(self) -> dict[str, TierStatus]:
        """`ram` and `disk`: bytes used and allowed; items are blocks and full-prompt records."""
        used_bytes = items = 0
        with self._reading("disk tier"):
            items = self._db.number("SELECT count(*) FROM blocks")
            used_bytes = self._db.number(
                "SELECT (SELECT total(size_bytes) FROM blocks) + (SELECT total(size_bytes) FROM entries)"
            )
        return {"ram": self._tiers.ram.status(), "disk": TierStatus(used_bytes, self.limits.disk_bytes, items)}

    def counters(self) -> dict[str, int]:
        """What happened since the store was opened."""
        return dict.fromkeys(COUNTERS, 0) | self._incidents.snapshot() | {"evicted_from_ram": self._tiers.ram.evictions}

    def evict(self) -> int:
        """Let go what is expired or over a budget; returns how many entries and blocks."""
        return self._budget.evict(self._clock())

    def check(self, fix: bool = False) -> CheckResult:
        """Compare rows and files; with `fix` delete what does not fit."""
        try:
            return Check(self._db, self._entries, self._blocks, self._tiers, self._files).run(fix=fix)
        except sqlite3.Error as error:
            raise StoreError(f"the check could not finish: {error}; restart the daemon and check again") from error
