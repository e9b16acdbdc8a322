"""Pins: an answer and the KV of its prompt that stay until somebody says otherwise, whatever is full or expired.

Every entry notes the names of its prompt's blocks. A name says what a block holds, so a pin also covers one that is
evicted now and stored again later. What is pinned is worked out anew from these notes: no flag on a block can be stale.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from semcache.errors import PinLimitError
from semcache.store.database import Database
from semcache.store.rows import ALL_ROWS, Fault, Rowids, number

# Of the disk tier and of a user's quota: the rest must be left to what comes and goes.
PIN_SHARE = 0.5

# What no pin holds: WHERE clauses over entries and over blocks.
LOOSE = ("pinned = 0", "hash NOT IN (SELECT hash FROM pinned_blocks)")

_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PromptStored:
    """What of a prompt's KV is on disk now."""

    num_blocks: int  # of the whole prompt, its full-prompt record among them
    num_stored: int
    size_bytes: int


class Pins:
    """The `prompt_blocks` table and the `pinned` column of entries. Everything here may raise sqlite3.Error."""

    def __init__(self, db: Database, *, total_bytes: int, user_bytes: int) -> None:
        """Budgets of the disk tier and of each user; a quota of 0 is none."""
        self._db = db
        self._total_bytes = total_bytes
        self._user_bytes = user_bytes

    def note(self, connection: sqlite3.Connection, entry_id: str, blocks: Sequence[str]) -> None:
        """Keep the names of the blocks that hold, or will hold, the KV of an entry's prompt."""
        if blocks:
            connection.execute(
                "INSERT INTO prompt_blocks (entry_id, hashes) VALUES (?, ?)", (entry_id, json.dumps(list(blocks)))
            )

    def change(self, entry_id: str, *, pinned: bool) -> bool:
        """Pin or unpin; False when there is no such entry. PinLimitError leaves everything as it was."""
        with self._db.transaction() as connection:
            row = connection.execute("SELECT pinned FROM entries WHERE id = ?", (entry_id,)).fetchone()
            if row is None:
                return False
            if bool(row["pinned"]) is not pinned:
                before = self._held()
                connection.execute("UPDATE entries SET pinned = ? WHERE id = ?", (int(pinned), entry_id))
                if pinned:
                    self._require_room(entry_id, before)
        return True

    def _require_room(self, entry_id: str, before: Counter[str]) -> None:
        held = self._held()
        checks = [("the disk tier", held.total(), self._total_bytes, "cache.disk_bytes")]
        if self._user_bytes > 0:
            checks += [
                (f"the quota of {user}", held[user], self._user_bytes, "cache.user_quota_bytes")
                for user in sorted(held)
                if held[user] > before[user]
            ]
        for whose, num_bytes, limit_bytes, key in checks:
            if num_bytes > PIN_SHARE * limit_bytes:
                raise PinLimitError(
                    f"cannot pin {entry_id}: pins would hold {num_bytes:,} of the {limit_bytes:,} bytes of {whose}, "
                    f"and they may hold {PIN_SHARE:.0%}; unpin something or raise {key}",
                    param="id",
                )

    def _held(self) -> Counter[str]:
        """Bytes that pins keep, by whose quota they count in; KV that is to come is taken for as large as its like."""
        held: Counter[str] = Counter()
        for row in self._db.rows("SELECT user, sum(size_bytes) FROM entries WHERE pinned = 1 GROUP BY user"):
            held[str(row[0])] += int(number(row[1]))
        largest: dict[str, int] = {}
        seen: set[str] = set()
        for row in self._db.rows(
            "SELECT pin.hash, pin.user, pin.fingerprint, blocks.user AS holder, blocks.size_bytes "
            "FROM pinned_blocks AS pin LEFT JOIN blocks ON blocks.hash = pin.hash"
        ):
            if row["hash"] in seen:
                continue
            seen.add(row["hash"])
            if row["holder"] is not None:
                held[str(row["holder"])] += int(number(row["size_bytes"]))
                continue
            model = row["fingerprint"]
            if model not in largest:
                largest[model] = self._db.number("SELECT max(size_bytes) FROM blocks WHERE fingerprint = ?", (model,))
            held[str(row["user"])] += largest[model]
        return held

    def warning(self) -> str | None:
        """One line where pins hold more than they might be given today: a budget was made smaller."""
        held = self._held()
        over = [f"{held.total():,} of {self._total_bytes:,} bytes"] * (held.total() > PIN_SHARE * self._total_bytes)
        if self._user_bytes > 0:
            limit = PIN_SHARE * self._user_bytes
            over += [f"{held[user]:,} bytes of {user}" for user in sorted(held) if held[user] > limit]
        if not over:
            return None
        return f"pinned answers hold more than {PIN_SHARE:.0%} of a budget ({'; '.join(over)}); unpin some or raise it"

    def blocks(self) -> set[str]:
        """Names of all blocks that no budget may take, stored or not."""
        return {row["hash"] for row in self._db.rows("SELECT hash FROM pinned_blocks")}

    def stored(self, entry_id: str) -> PromptStored | None:
        """What is there of an entry's prompt; None where its blocks were never noted, as by an older version."""
        row = self._db.row("SELECT hashes FROM prompt_blocks WHERE entry_id = ?", (entry_id,))
        names = _names(row["hashes"]) if row is not None else None
        if names is None:
            return None
        sql = "SELECT size_bytes FROM blocks WHERE hash IN (SELECT value FROM json_each(?))"
        sizes = [int(number(block["size_bytes"])) for block in self._db.rows(sql, (json.dumps(names),))]
        return PromptStored(len(names), len(sizes), sum(sizes))

    def faults(self, among: Rowids = ALL_ROWS) -> list[Fault]:
        """Notes that cannot be read or whose entry is gone, without deleting anything; for `check`."""
        rows = self._db.rows(
            "SELECT number, entry_id, hashes, entry_id IN (SELECT id FROM entries) AS has_entry FROM prompt_blocks "
            "WHERE number > ? AND number <= ?",
            among,
        )
        found = [(row, _problem_of(row)) for row in rows]
        return [
            Fault(*problem, table="prompt_blocks", number=row["number"])
            for row, problem in found
            if problem is not None
        ]


def _names(text: object) -> list[str] | None:
    """The names in a note; None for a damaged one."""
    try:
        names = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    whole = isinstance(names, list) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
    return names if whole else None


def _problem_of(row: sqlite3.Row) -> tuple[str, str, str] | None:
    if not row["has_entry"]:
        return "orphan_pin", str(row["entry_id"]), "its entry is gone"
    if _names(row["hashes"]) is None:
        return "damaged_pin", str(row["entry_id"]), "does not name the blocks of a prompt"
    return None
