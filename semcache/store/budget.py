"""Keeps the disk within its limit: notices when a write went over it, and lets the policy's victims go."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semcache.store.aliases import Aliases
from semcache.store.answers import Answers
from semcache.store.blocks import Blocks
from semcache.store.database import Database
from semcache.store.evict import Candidate, Rank, Use, bytes_to_free, choose_answers, choose_blocks
from semcache.store.incidents import Incidents
from semcache.store.rows import number
from semcache.store.tiers import Tiers

# Rows per transaction: short enough that a look-up waits a few milliseconds for the lock, not for a whole eviction.
BATCH_ROWS = 64


@dataclass(frozen=True)
class DiskLimits:
    """Bytes for everything and for each user; a quota of 0 is none."""

    total_bytes: int
    user_bytes: int
    order: Rank


class DiskBudget:
    """Estimates between evictions (writes are added, deletes are not), exact sums when it evicts."""

    def __init__(
        self,
        limits: DiskLimits,
        *,
        db: Database,
        answers: Answers,
        aliases: Aliases,
        tiers: Tiers,
        blocks: Blocks,
        incidents: Incidents,
    ) -> None:
        self._limits = limits
        self._db = db
        self._answers = answers
        self._aliases = aliases
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
        rows = self._db.rows("SELECT user, sum(size_bytes) FROM stored_bytes GROUP BY user")
        with self._lock:
            self._user_bytes = {str(row[0]): int(number(row[1])) for row in rows}
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
        answer_bytes = self._sum("entries", mine, params) + self._sum("aliases", mine, params)
        budget = bytes_to_free(limit_bytes, answer_bytes, self._sum("blocks", mine, params))
        num = 0
        if budget.answer_bytes:
            num += self._drop_answers(budget.answer_bytes, mine, params)
        if budget.block_bytes:
            candidates = self._blocks_in_order(user)
            num += self._drop_blocks(choose_blocks(candidates, budget.block_bytes), "evicted_blocks")
        return num

    def _drop_answers(self, free_bytes: int, mine: str, params: Sequence[Any]) -> int:
        """Entries and aliases compete by their last use: a user's aliases may all be of other users' entries."""
        used = "size_bytes, created_at, last_used_at, hits"
        # An alias saves what its entry saves.
        rows = self._db.rows(
            f"SELECT id AS name, {used}, compute_ms FROM entries WHERE pinned = 0 AND {mine} UNION ALL "  # noqa: S608
            f"SELECT number, {used}, (SELECT compute_ms FROM entries WHERE id = entry_id) FROM aliases WHERE {mine}",
            (*params, *params),
        )
        order = self._limits.order
        rows.sort(key=lambda row: (order(Use.of_row(row)), str(row["name"])))
        victims: list[str | int] = choose_answers(
            ((row["name"], int(number(row["size_bytes"]))) for row in rows), free_bytes
        )
        num_aliases = self._aliases.drop([name for name in victims if isinstance(name, int)])
        self._incidents.count("evicted_aliases", num_aliases)
        return num_aliases + self._drop_entries([name for name in victims if isinstance(name, str)], "evicted_entries")

    def _blocks_in_order(self, user: str | None) -> list[Candidate]:
        """All blocks, what leaves first first; of equals the one furthest from the start of its prompt."""
        order = self._limits.order
        ranked = [
            ((order(Use.of_row(row)), -number(row["first_token"]), str(row["hash"])), row)
            for row in self._blocks.uses()
        ]
        ranked.sort(key=lambda pair: pair[0])
        return [
            Candidate(row["hash"], row["parent"], int(number(row["size_bytes"])), user is None or row["user"] == user)
            for _, row in ranked
        ]

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
