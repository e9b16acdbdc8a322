"""Keeps the disk within its limit: notices when a write went over it, and lets the policy's victims go."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from semcache.store.aliases import Aliases
from semcache.store.answers import Answers
from semcache.store.blocks import Blocks
from semcache.store.database import Database, batches
from semcache.store.evict import Bytes, Candidate, Use, bytes_to_free, choose_answers, choose_blocks
from semcache.store.incidents import Incidents
from semcache.store.limits import StoreLimits
from semcache.store.pins import LOOSE, Pins
from semcache.store.ram import TierStatus
from semcache.store.rows import number, oldest_live
from semcache.store.tiers import Tiers


class DiskBudget:
    """Estimates between evictions (writes are added, deletes are not), exact sums when it evicts."""

    def __init__(
        self,
        limits: StoreLimits,
        *,
        db: Database,
        answers: Answers,
        aliases: Aliases,
        pins: Pins,
        tiers: Tiers,
        blocks: Blocks,
        incidents: Incidents,
    ) -> None:
        self._limits = limits
        self._db = db
        self._answers = answers
        self._aliases = aliases
        self._pins = pins
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

    def status(self) -> TierStatus:
        """What counts in the limit, exactly; items are blocks and full-prompt records."""
        used_bytes = self._db.number("SELECT sum(size_bytes) FROM stored_bytes")
        return TierStatus(used_bytes, self._limits.disk_bytes, self._db.number("SELECT count(*) FROM blocks"))

    def added(self, user: str, size_bytes: int, now_s: float) -> None:
        """Note a write, and let go what must go now: of everybody's, or of a user's who alone has too much."""
        with self._lock:
            self._total_bytes += size_bytes
            self._user_bytes[user] = self._user_bytes.get(user, 0) + size_bytes
            is_full = self._total_bytes > self._limits.disk_bytes
            is_over = 0 < self._limits.user_quota_bytes < self._user_bytes[user]
        if is_full:
            self.evict(now_s)
        elif is_over:
            self._evict_of(user, now_s)

    def pin(self, entry_id: str, *, pinned: bool) -> bool:
        """Pin or unpin as `Pins.change` does, between two evictions: one under way has chosen its victims already."""
        with self._evicting:
            return self._pins.change(entry_id, pinned=pinned)

    def evict(self, now_s: float) -> int:
        """Let go what is expired and what is over a limit; returns how many rows. One thread at a time, others skip."""
        with self._alone() as is_first:
            if not is_first:
                return 0
            num = self._purge_expired(now_s)
            self.refresh()
            num += self._shrink(None, self._limits.disk_bytes)
            if self._limits.user_quota_bytes > 0:
                with self._lock:
                    over = [user for user, used in self._user_bytes.items() if used > self._limits.user_quota_bytes]
                num += sum(self._shrink(user, self._limits.user_quota_bytes) for user in sorted(over))
            if num:
                self.refresh()
            return num
        return 0

    def _evict_of(self, user: str, now_s: float) -> None:
        """The same for one user: it happens every few writes of a user at the quota, so nothing of others is read."""
        with self._alone() as is_first:
            if not is_first:
                return
            self._purge_expired(now_s, user)
            self._shrink(user, self._limits.user_quota_bytes)
            used = self._used(user)
            with self._lock:
                self._total_bytes += used.answers + used.blocks - self._user_bytes.get(user, 0)
                self._user_bytes[user] = used.answers + used.blocks

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether nobody else evicts; a database that refuses ends the eviction."""
        if not self._evicting.acquire(blocking=False):
            yield False
            return
        try:
            yield True
        except sqlite3.Error as error:
            self._incidents.failure("write_failures", "eviction", error)
        finally:
            self._evicting.release()

    def _purge_expired(self, now_s: float, user: str | None = None) -> int:
        if self._limits.ttl_s <= 0:
            return 0
        mine, params = _owned(user)
        entries, blocks = (f"created_at <= ? AND {mine} AND {loose}" for loose in LOOSE)
        params = (oldest_live(now_s, self._limits.ttl_s), *params)
        num_blocks = self._drop_blocks([row.hash for row in self._blocks.select(blocks, params)], "expired_blocks")
        num_entries = self._answers.delete_where(entries, params)
        self._incidents.count("expired_entries", num_entries)
        return num_blocks + num_entries

    def _used(self, user: str | None) -> Bytes:
        mine, params = _owned(user)
        answers = self._sum("entries", mine, params) + self._sum("aliases", mine, params)
        return Bytes(answers, self._sum("blocks", mine, params))

    def _shrink(self, user: str | None, limit_bytes: int) -> int:
        mine, params = _owned(user)
        pinned = Bytes(
            self._sum("entries", f"pinned = 1 AND {mine}", params),
            self._sum("blocks", f"{mine} AND hash IN (SELECT hash FROM pinned_blocks)", params),  # noqa: S608
        )
        free = bytes_to_free(limit_bytes, self._used(user), pinned)
        num = 0
        if free.answers:
            num += self._drop_answers(free.answers, mine, params)
        if free.blocks:
            candidates = self._blocks_in_order(user)
            # A block that is another's parent may be of another user than its children.
            children = None if user is None else self._blocks.num_children([block.hash for block in candidates])
            num += self._drop_blocks(choose_blocks(candidates, free.blocks, children), "evicted_blocks")
        return num

    def _drop_answers(self, free_bytes: int, mine: str, params: Sequence[Any]) -> int:
        """Entries and aliases compete by their last use: a user's aliases may all be of other users' entries."""
        used = "size_bytes, created_at, last_used_at, hits"
        # An alias saves what its entry saves.
        rows = self._db.rows(
            f"SELECT 'entry' AS kind, rowid AS number, id AS name, {used}, compute_ms FROM entries "  # noqa: S608
            f"WHERE pinned = 0 AND {mine} UNION ALL "
            f"SELECT 'alias', number, number, {used}, (SELECT compute_ms FROM entries WHERE id = entry_id) "
            f"FROM aliases WHERE {mine}",
            (*params, *params),
        )
        order = self._limits.order
        rows.sort(key=lambda row: (order(Use.of_row(row)), str(row["name"])))
        victims = choose_answers(
            (((row["kind"], row["number"]), int(number(row["size_bytes"]))) for row in rows), free_bytes
        )
        num_aliases = self._aliases.drop([at for kind, at in victims if kind == "alias"])
        self._incidents.count("evicted_aliases", num_aliases)
        num_entries = self._answers.delete_rows([at for kind, at in victims if kind == "entry"], "pinned = 0", ())
        self._incidents.count("evicted_entries", num_entries)
        return num_aliases + num_entries

    def _blocks_in_order(self, user: str | None) -> list[Candidate]:
        """All blocks or a user's, what leaves first first; of equals the one furthest from the start of its prompt."""
        order = self._limits.order
        ranked = [
            ((order(Use.of_row(row)), -number(row["first_token"]), str(row["hash"])), row)
            for row in self._blocks.uses(user)
        ]
        ranked.sort(key=lambda pair: pair[0])
        pinned = self._pins.blocks()
        return [
            Candidate(
                row["hash"], row["parent"], int(number(row["size_bytes"])),
                may_leave=row["hash"] not in pinned,
            )
            for _, row in ranked
        ]  # fmt: skip

    def _sum(self, table: str, where: str, params: Sequence[Any]) -> int:
        return self._db.number(f"SELECT sum(size_bytes) FROM {table} WHERE {where}", params)  # noqa: S608

    def _drop_blocks(self, hashes: Sequence[str], counter: str) -> int:
        num = sum(len(self._tiers.delete(self._blocks.by_hashes(batch))) for batch in batches(hashes))
        self._incidents.count(counter, num)
        return num


def _owned(user: str | None) -> tuple[str, tuple[Any, ...]]:
    """A WHERE clause and its values; None is everybody."""
    return ("1", ()) if user is None else ("user = ?", (user,))
