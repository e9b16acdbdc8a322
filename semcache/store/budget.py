"""Keeps the disk within its limit: notices when a write went over it, and lets the policy's victims go."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semcache.store.answers import Answers
from semcache.store.blocks import Blocks
from semcache.store.database import Database
from semcache.store.evict import Candidate, Order, bytes_to_free, choose_answers, choose_blocks
from semcache.store.incidents import Incidents
from semcache.store.tiers import Tiers

# Rows per transaction: short enough that a look-up waits a few milliseconds for the lock, not for a whole eviction.
BATCH_ROWS = 64


@dataclass(frozen=True)
class DiskLimits:
    """Bytes for everything and for each user; a quota of 0 is none."""

    total_bytes: int
    user_bytes: int
    order: Order


class DiskBudget:
    """Estimates between evictions (writes are added, deletes are not), exact sums when it evicts."""

    def __init__(
        self,
        limits: DiskLimits,
        *,
        db: Database,
        answers: Answers,
        tiers: Tiers,
        blocks: Blocks,
        incidents: Incidents,
    ) -> None:
        self._limits = limits
        self._db = db
        self._answers = answers
        self._tiers = tiers
        self._blocks = blocks
        self._incidents = incidents
        self._lock = threading.Lock()  # over the estimates
        self._evicting = threading.Lock()
        self._total_bytes = 0
        self._user_bytes: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Set the estimates to the exact sums."""
        rows = self._db.rows(
            "SELECT user, sum(size_bytes) FROM (SELECT user, size_bytes FROM blocks UNION ALL "
            "SELECT user, size_bytes FROM entries) GROUP BY user"
        )
        with self._lock:
            self._user_bytes = {row[0]: row[1] for row in rows}
            self._total_bytes = sum(self._user_bytes.values())

    def added(self, user: str, size_bytes: int) -> bool:
        """Note a write; True when something must go now."""
        with self._lock:
            self._total_bytes += size_bytes
            self._user_bytes[user] = self._user_bytes.get(user, 0) + size_bytes
            return self._total_bytes > self._limits.total_bytes or 0 < self._limits.user_bytes < self._user_bytes[user]

    def evict(self, now_s: float) -> int:
        """Let go what is expired and what is over a limit; returns how many rows. One thread at a time, others skip."""
        if not self._evicting.acquire(blocking=False):
            return 0
        try:
            num = self._purge_expired(now_s)
            self.refresh()
            num += self._shrink(None, self._limits.total_bytes)
            if self._limits.user_bytes > 0:
                with self._lock:
                    over = [user for user, used in self._user_bytes.items() if used > self._limits.user_bytes]
                num += sum(self._shrink(user, self._limits.user_bytes) for user in sorted(over))
            if num:
                self.refresh()
            return num
        except sqlite3.Error as error:
            self._incidents.failure("write_failures", "eviction", error)
            return 0
        finally:
            self._evicting.release()

    def _purge_expired(self, now_s: float) -> int:
        ids = self._answers.entries.ids("expires_at IS NOT NULL AND expires_at <= ?", (now_s,))
        num = self._drop_entries(ids, "expired_entries")
        return num + self._drop_blocks([row.hash for row in self._blocks.expired(now_s)], "expired_blocks")

    def _shrink(self, user: str | None, limit_bytes: int) -> int:
        mine, params = ("1", ()) if user is None else ("user = ?", (user,))
        budget = bytes_to_free(limit_bytes, self._sum("entries", mine, params), self._sum("blocks", mine, params))
        num = 0
        if budget.answer_bytes:
            rows = self._db.rows(
                f"SELECT id, size_bytes FROM entries WHERE pinned = 0 AND {mine} ORDER BY {self._limits.order.sql}, id",  # noqa: S608
                params,
            )
            victims = choose_answers(((row["id"], row["size_bytes"]) for row in rows), budget.answer_bytes)
            num += self._drop_entries(victims, "evicted_entries")
        if budget.block_bytes:
            order = f"{self._limits.order.sql}, first_token DESC, hash"
            rows = self._db.rows(f"SELECT hash, parent, size_bytes, user FROM blocks ORDER BY {order}")  # noqa: S608
            candidates = [Candidate(row[0], row[1], row[2], user is None or row[3] == user) for row in rows]
            num += self._drop_blocks(choose_blocks(candidates, budget.block_bytes), "evicted_blocks")
        return num

    def _sum(self, table: str, where: str, params: Sequence[Any]) -> int:
        return self._db.number(f"SELECT sum(size_bytes) FROM {table} WHERE {where}", params)  # noqa: S608

    def _drop_entries(self, ids: Sequence[str], counter: str) -> int:
        num = sum(self._answers.delete(batch) for batch in _batches(ids))
        self._incidents.count(counter, num)
        return num

    def _drop_blocks(self, hashes: Sequence[str], counter: str) -> int:
        num = sum(len(self._tiers.delete(self._blocks.by_hashes(batch))) for batch in _batches(hashes))
        self._incidents.count(counter, num)
        return num


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), BATCH_ROWS):
        yield names[first : first + BATCH_ROWS]
