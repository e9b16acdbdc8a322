"""The store's front door: keeps answers and KV, knows no requests, no HTTP, no models and nobody's rights.

Thread-safe. What a machine does to a cache (full disk, damaged file, locked database) is a miss or a False with a
counter; only opening a folder that cannot be used, and deleting what cannot be deleted, raise.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np

from semcache.errors import StoreError
from semcache.store.aliases import Aliases
from semcache.store.answers import Answers
from semcache.store.blocks import BlockKey, Blocks, Continuation, Owner
from semcache.store.budget import DiskBudget
from semcache.store.buffers import READY_BYTES
from semcache.store.check import Check, CheckResult, sweep
from semcache.store.database import Database
from semcache.store.datadir import DataDir
from semcache.store.decisions import Decisions
from semcache.store.disk import DiskTier
from semcache.store.entries import Entries, Entry, where_owner
from semcache.store.erasure import Erasure
from semcache.store.evict import ORDERS
from semcache.store.evidence import EvidenceTable
from semcache.store.expiry import Expiry
from semcache.store.files import Files
from semcache.store.incidents import COUNTERS, LOG, Incidents
from semcache.store.limits import StoreLimits, automatic_bytes
from semcache.store.openings import Openings
from semcache.store.pins import Pins, PromptStored
from semcache.store.ram import RamTier, TierStatus
from semcache.store.recovery import open_with
from semcache.store.tensors import KVSpan, TailRecord
from semcache.store.tiers import PromptLoad, Tiers
from semcache.store.usage import HistoryRow, UsageBook, UsageRecord, UsageReport
from semcache.store.vectors import Partition

DATABASE_NAME = "semcache.db"
KV_FOLDER = "kv"


class Store:
    """Open one with `Store.open`; one process owns a data directory."""

    def __init__(
        self,
        folder: DataDir,
        db: Database,
        limits: StoreLimits,
        clock: Callable[[], float],
        files: Files,
        timer: Callable[[], float],
    ) -> None:
        self.warnings: list[str] = []
        if not limits.disk_bytes:
            stored_bytes = db.number("SELECT sum(size_bytes) FROM stored_bytes")
            free_bytes = shutil.disk_usage(folder.path).free
            limits = replace(limits, disk_bytes=automatic_bytes(free_bytes, stored_bytes))
        self.limits = limits
        self._folder = folder
        self._db = db
        self._clock = clock
        self._files = files
        self._incidents = Incidents()
        self._preparing: Future[None] | None = None
        self._blocks = Blocks(db, limits.ttl_s)
        disk = DiskTier(folder.path / KV_FOLDER, db, self._blocks, files, self._incidents, durable=limits.durable)
        self._tiers = Tiers(
            RamTier(limits.ram_bytes, limits.order, clock), disk,
            db=db, blocks=self._blocks, incidents=self._incidents, clock=clock, added=self._added,
            queue_bytes=limits.write_queue_bytes, timer=timer,
        )  # fmt: skip
        self._entries = Entries(db, self._incidents, limits.ttl_s)
        self.aliases = Aliases(db, self._entries, self._incidents, clock, self._added)
        self.evidence = EvidenceTable(db, self._incidents, clock)
        self.decisions = Decisions(db, self._incidents, clock)
        self.openings = Openings(db, self._entries, self._incidents, clock)
        self._pins = Pins(db, total_bytes=limits.disk_bytes, user_bytes=limits.user_quota_bytes)
        self._answers = Answers(db, self._entries, self.aliases, self._pins, self._incidents, clock)
        self._usage = UsageBook(db, self._incidents)
        self._budget = DiskBudget(
            limits, db=db, answers=self._answers, aliases=self.aliases, pins=self._pins, tiers=self._tiers,
            blocks=self._blocks, incidents=self._incidents,
        )  # fmt: skip
        self._erasure = Erasure(
            db=db, answers=self._answers, aliases=self.aliases, decisions=self.decisions, evidence=self.evidence,
            usage=self._usage, blocks=self._blocks, tiers=self._tiers, budget=self._budget,
            incidents=self._incidents, files=files,
        )  # fmt: skip
        num_swept, stuck = sweep(disk.folder, db, self._blocks, files)
        self._incidents.count("swept_files", num_swept)
        self.warnings += stuck
        with self._incidents.reading("sizes of blocks"):
            self._preparing = disk.prepare(min(READY_BYTES, limits.ram_bytes))
        if (warning := self._pins.warning()) is not None:
            self.warnings.append(warning)
        self._expiry = Expiry(self.evict, self._incidents) if limits.ttl_s > 0 else None

    @staticmethod
    def open(
        data_dir: Path,
        limits: StoreLimits,
        *,
        clock: Callable[[], float] = time.time,
        files: Files | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> Store:
        """Own and open a data directory; StoreError says in one line why that cannot be. `timer` measures loads."""
        if limits.eviction not in ORDERS:
            raise StoreError(f"unknown eviction order {limits.eviction!r}; use one of {', '.join(ORDERS)}")
        folder = DataDir(data_dir)
        store, warning = open_with(
            folder,
            DATABASE_NAME,
            lambda db: Store(folder, db, limits, clock, files or Files(), timer),
            durable=limits.durable,
        )
        if warning is not None:
            store.warnings.append(warning)
            LOG.warning(warning)
        return store

    def close(self) -> None:
        """Write what waits and give the data directory back; then every read is a miss and every write a False."""
        if self._expiry is not None:
            self._expiry.close()
        self._tiers.close()
        self._db.close()
        self._folder.release("damaged" if self._db.is_corrupt else "clean")

    def wait_until_prepared(self) -> None:
        """Wait for what is made ready behind `open`; whoever does not wait may read all the same."""
        if self._preparing is not None:
            self._preparing.result()

    # KV

    def load_prefix(self, keys: Sequence[BlockKey], *, ms_per_token: float | None = None) -> list[KVSpan]:
        """KV of the longest leading run that is present and verified.

        With the speed of prefill only the leading part that loads faster than it is computed, which may be nothing.
        """
        return [stored for stored in self._tiers.load(keys, ms_per_token=ms_per_token) if isinstance(stored, KVSpan)]

    def load_prompt(
        self, blocks: Sequence[BlockKey], tail: BlockKey, *, ms_per_token: float | None = None
    ) -> PromptLoad:
        """What is stored of one prompt, its full-prompt record first; the blocks are read as they are asked for.

        With the speed of prefill only the leading part that loads faster than it is computed, as for `load_prefix`.
        """
        return self._tiers.load_prompt(blocks, tail, ms_per_token=ms_per_token)

    def load_continuation(self, wanted: Continuation, *, ms_per_token: float | None = None) -> KVSpan | None:
        """KV of the most leading tokens that one stored block or full-prompt record shares with `wanted`, if any.

        With the speed of prefill only where loading it is faster than computing these tokens.
        """
        return self._tiers.load_continuation(wanted, ms_per_token=ms_per_token)

    def missing(self, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """The keys without a live row, stored or on the way."""
        return self._tiers.missing(keys)

    def put_block(self, key: BlockKey, span: KVSpan, owner: Owner, compute_ms: float = 0) -> bool:
        """Keep a block; False when it could not be written, or queued where writes are queued."""
        assert (key.kind, len(key.token_ids)) == ("block", span.num_tokens), key
        return self._tiers.put(key, span, owner, compute_ms)

    def put_tail(self, key: BlockKey, record: TailRecord, owner: Owner, compute_ms: float = 0) -> bool:
        """Keep a full-prompt record; False as for a block."""
        assert (key.kind, len(key.token_ids)) == ("tail", record.span.num_tokens), key
        return self._tiers.put(key, record, owner, compute_ms)

    def flush(self) -> None:
        """Wait until every block that waits for the disk is written or refused."""
        self._tiers.behind.flush()

    def write_queue(self) -> TierStatus:
        """KV that waits for the disk."""
        return self._tiers.behind.status()

    def _added(self, user: str, size_bytes: int) -> None:
        self._budget.added(user, size_bytes, self._clock())

    # Answers

    def find_exact(self, scope: str, request_key: str) -> list[Entry]:
        """Stored answers of the identical request, newest first."""
        with self._incidents.reading("answers"):
            return self._entries.find_exact(scope, request_key, self._clock())
        return []

    def nearest(
        self, scope: str, vector: np.ndarray, k: int, partition: Partition | None, *, embedder: str | None = None
    ) -> list[tuple[Entry, float]]:
        """The k entries of a scope whose embeddings are closest, best first, with their cosines."""
        with self._incidents.reading("neighbours"):
            return self._answers.nearest(scope, vector, k, partition, embedder)
        return []

    def nearest_and_donor(
        self, scope: str, vector: np.ndarray, k: int, partition: Partition
    ) -> tuple[list[tuple[Entry, float]], tuple[Entry, float] | None]:
        """`nearest` of a partition, and the nearest entry of any partition of its embedder, at the price of one."""
        with self._incidents.reading("neighbours"):
            return self._answers.nearest_and_donor(scope, vector, k, partition)
        return [], None

    def has_neighbours(self, scope: str, partition: Partition | None) -> bool:
        """Whether `nearest` could find anything; far cheaper than an embedding."""
        with self._incidents.reading("neighbours"):
            return self._answers.has_neighbours(scope, partition)
        return False

    def put_entry(self, entry: Entry, blocks: Sequence[str] = ()) -> bool:
        """Keep an answer in place of older ones to the same request; False when it could not be written.

        `blocks` are the names of its prompt's KV blocks and record, stored or not: a pin keeps these too.
        """
        with self._incidents.writing(f"entry {entry.id}"):
            self._answers.put(entry, blocks)
            self._added(entry.user, entry.size_bytes)
            return True
        return False

    def touch_entry(self, entry_id: str) -> None:
        """Count a hit."""
        with self._incidents.writing("last use of an entry"):
            self._entries.touch(entry_id, self._clock())

    def pin_entry(self, entry_id: str, *, pinned: bool = True) -> bool:
        """Protect an entry and its prompt's KV from budgets and TTL, or stop doing so; False when there is none.

        PinLimitError where pins would hold too much; StoreError where the database refuses.
        """
        self.flush()  # what waits for the disk counts too
        try:
            return self._budget.pin(entry_id, pinned=pinned)
        except sqlite3.Error as error:
            raise StoreError(f"could not change the pin of {entry_id}: {error}; try again") from error

    def prompt_stored(self, entry_id: str) -> PromptStored | None:
        """What of an entry's prompt is on disk as KV; None where that is not known."""
        with self._incidents.reading("blocks of an entry"):
            return self._pins.stored(entry_id)
        return None

    def get_entry(self, entry_id: str) -> Entry | None:
        with self._incidents.reading("entry"):
            return self._entries.by_ids([entry_id], self._clock()).get(entry_id)
        return None

    def list_entries(
        self, *, scopes: Sequence[str] | None = None, user: str | None = None, principal: str | None = None,
        shared: str | None = None, limit: int = 50, sort: str = "used", match: str | None = None,
    ) -> list[Entry]:  # fmt: skip
        """Entries for people to look at; `sort` is one of `entries.SORTS`.

        With a `principal` what it and its sub-users wrote, and whatever is in the scope `shared`.
        """
        with self._incidents.reading("entries"):
            return self._entries.listing(
                scopes=scopes, user=user, principal=principal, shared=shared, limit=limit, sort=sort, match=match,
                now_s=self._clock(),
            )  # fmt: skip
        return []

    # Deleting: nothing of what was deleted stays in the database file or its log

    def delete_entries(self, ids: Sequence[str]) -> int:
        return self._erasure.delete_entries(ids)

    def clear(
        self, *, scopes: Sequence[str] | None = None, user: str | None = None, namespace: str | None = None,
        keep_pinned: bool = False,
    ) -> tuple[int, int]:  # fmt: skip
        """Delete what matches every given filter; returns how many entries and blocks.

        With `keep_pinned` pinned entries and the KV of their prompts stay, their aliases and evidence do not.
        StoreError says what is still there: rows, or files whose rows are gone.
        """
        return self._erasure.clear(scopes=scopes, user=user, namespace=namespace, keep_pinned=keep_pinned)

    def forget_user(self, user: str) -> tuple[int, int]:
        """Delete everything of a user: what `clear` deletes, history and sums; and databases that were put aside.

        Returns how many entries and blocks. StoreError says what is still there.
        """
        return self._erasure.forget_user(user)

    # Statistics and upkeep

    def record_request(self, row: UsageRecord) -> None:
        with self._incidents.writing("request history"):
            self._usage.record(row)

    def recent_requests(self, limit: int = 50, principal: str | None = None) -> list[HistoryRow]:
        with self._incidents.reading("request history"):
            return self._usage.recent(limit, principal)
        return []

    def usage(self) -> UsageReport:
        with self._incidents.reading("usage"):
            return self._usage.report(self._tiers.ram.bytes_by_user())
        return UsageReport.empty()

    def users(self) -> list[str]:
        """Everybody who asked or stored anything, in order; no row is read for it."""
        with self._incidents.reading("users"):
            return self._usage.users()
        return []

    def num_pinned(self, *, user: str | None = None, namespace: str | None = None) -> int:
        where, params = where_owner(scopes=None, user=user, namespace=namespace)
        with self._incidents.reading("entries"):
            return len(self._entries.numbers(f"pinned = 1 AND {where}", params))
        return 0

    def num_entries(self) -> int:
        with self._incidents.reading("entries"):
            return self._db.number("SELECT count(*) FROM entries")
        return 0

    def tier_status(self) -> dict[str, TierStatus]:
        """`ram` and `disk`: bytes used and allowed; items are blocks and full-prompt records."""
        disk = TierStatus(0, self.limits.disk_bytes, 0)
        with self._incidents.reading("disk tier"):
            disk = self._budget.status()
        return {"ram": self._tiers.ram.status(), "disk": disk}

    def counters(self) -> dict[str, int]:
        """What happened since the store was opened."""
        return dict.fromkeys(COUNTERS, 0) | self._incidents.snapshot() | {"evicted_from_ram": self._tiers.ram.evictions}

    def evict(self) -> int:
        """Let go what is expired or over a budget; returns how many entries, aliases and blocks."""
        return self._budget.evict(self._clock())

    def check(self, fix: bool = False) -> CheckResult:
        """Compare rows and files; with `fix` delete what does not fit."""
        try:
            check = Check(
                self._db, self._entries, self.aliases, self.evidence, self._pins, self._usage, self._blocks,
                self._tiers, self._files,
            )  # fmt: skip
            return check.run(fix=fix)
        except sqlite3.Error as error:
            raise StoreError(f"the check could not finish: {error}; restart the daemon and check again") from error
