"""Aliases: a wording that was found to ask the same is an exact key of the entry that answered it.

An alias lives no longer than its entry; what cannot be read or does not fit is no alias.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from semcache.store.database import Database, Params
from semcache.store.entries import Entries, Entry
from semcache.store.incidents import Incidents
from semcache.store.rows import ALL_ROWS, Fault, Rowids, checksum, drop_damaged

MAX_ALIASES_PER_ENTRY = 32
ROW_BYTES = 256  # keys, index and page overhead beside the prompt


@dataclass(frozen=True)
class Alias:
    """One more request that an entry answers, and whose wording it is."""

    scope: str
    request_key: str
    entry_id: str
    prompt: str
    user: str
    created_at: float  # seconds since the epoch
    hits: int = 0

    @property
    def size_bytes(self) -> int:
        """Roughly what the row takes on disk."""
        return ROW_BYTES + len(self.prompt.encode(errors="replace"))


_FIELDS = tuple(item.name for item in fields(Alias))
_COLUMNS = (*_FIELDS, "last_used_at", "size_bytes", "checksum")
_IMMUTABLE = tuple(name for name in _FIELDS if name != "hits")
_NAMES = f"number, {', '.join(_COLUMNS)}"
_SELECT = f"SELECT {_NAMES} FROM aliases"  # noqa: S608 - column names of our own dataclass
_VALUES = f"INTO aliases ({', '.join(_COLUMNS)}) SELECT {', '.join(':' + name for name in _COLUMNS)}"
# SQLite would accept an alias of another scope's entry; nobody else may.
_INSERT = f"INSERT OR REPLACE {_VALUES} WHERE EXISTS (SELECT 1 FROM entries WHERE id = :entry_id AND scope = :scope)"  # noqa: S608


class Aliases:
    """The `aliases` table; foreign keys delete an alias with its entry. `added` hears whose bytes a new one takes."""

    def __init__(
        self,
        db: Database,
        entries: Entries,
        incidents: Incidents,
        clock: Callable[[], float],
        added: Callable[[str, int], None],
    ) -> None:
        self._db = db
        self._entries = entries
        self._incidents = incidents
        self._clock = clock
        self._added = added

    def put(self, alias: Alias) -> bool:
        """Keep an alias in place of an older one of the same request; False when its entry is gone or the disk full."""
        row = _to_row(alias, last_used_at=alias.created_at)
        with self._incidents.writing("alias"):
            with self._db.transaction() as connection:
                if not connection.execute(_INSERT, row).rowcount:
                    return False
                _trim(connection, alias.entry_id, newest=alias.request_key)
            self._added(alias.user, alias.size_bytes)
            return True
        return False

    def find(self, scope: str, request_key: str, *, count: bool = True) -> Entry | None:
        """The verified, living entry behind a request; counts a use of the alias unless it is only looked at."""
        with self._incidents.reading("alias"):
            row = self._db.row(f"{_SELECT} WHERE scope = ? AND request_key = ?", (scope, request_key))
            if row is None or not self._is_whole(row):
                return None
            if (row["scope"], row["request_key"]) != (scope, request_key):  # SQLite believes its index
                self._db.is_corrupt = True
                self._incidents.damage("damaged_aliases", f"alias {row['number']}", "found under a wrong key")
                return None
            found: str = row["entry_id"]
            entry = self._entries.by_ids([found], self._clock()).get(found)
            if entry is None or entry.scope != scope:
                # With the checksum: an alias that was moved to a newer entry meanwhile is not the one that was read.
                self._change("DELETE FROM aliases WHERE number = ? AND checksum = ?", (row["number"], row["checksum"]))
                return None
            if count:
                self._change(
                    "UPDATE aliases SET hits = hits + 1, last_used_at = max(last_used_at, ?) WHERE number = ?",
                    (self._clock(), row["number"]),
                    waits=False,
                )
            return entry
        return None

    def of(self, entry_id: str) -> list[Alias]:
        """An entry's aliases, oldest first."""
        with self._incidents.reading("aliases"):
            rows = self._db.rows(f"{_SELECT} WHERE entry_id = ? ORDER BY created_at, number", (entry_id,))
            return [_from_row(row) for row in rows if self._is_whole(row)]
        return []

    def delete(self, scope: str, request_key: str) -> bool:
        """False when there is none or the machine refuses."""
        return bool(self._change("DELETE FROM aliases WHERE scope = ? AND request_key = ?", (scope, request_key)))

    def _is_whole(self, row: sqlite3.Row) -> bool:
        """False for a damaged row, which is counted and deleted."""
        if row["checksum"] == checksum(row, _IMMUTABLE):
            return True
        self._incidents.damage("damaged_aliases", f"alias {row['number']}", "checksum does not match")
        with self._incidents.writing("damaged alias"), self._db.transaction() as connection:
            drop_damaged(connection, "aliases", row["number"], _IMMUTABLE)
        return False

    def _change(self, sql: str, params: Params, *, waits: bool = True) -> int:
        with self._incidents.writing("alias"), self._db.transaction(waits=waits) as connection:
            return connection.execute(sql, params).rowcount
        return 0

    # For the rest of the store; these may raise sqlite3.Error

    def inherited(self, connection: sqlite3.Connection, entry: Entry) -> list[Mapping[str, Any]]:
        """Aliases of older entries that gave the same answer to the same request; read before those are replaced."""
        rows = connection.execute(
            f"{_SELECT} WHERE entry_id IN ("  # noqa: S608 - two searches: with an OR SQLite reads the whole scope
            "SELECT id FROM entries WHERE scope = :scope AND request_key = :request_key AND answer = :answer "
            "UNION SELECT id FROM entries WHERE id = :id AND scope = :scope AND answer = :answer)",
            {"scope": entry.scope, "id": entry.id, "request_key": entry.request_key, "answer": entry.answer},
        ).fetchall()
        return [dict(row) for row in rows if row["checksum"] == checksum(row, _IMMUTABLE)]

    def move(self, connection: sqlite3.Connection, rows: Sequence[Mapping[str, Any]], entry: Entry) -> None:
        """Make aliases of replaced entries, deleted with them, aliases of the new one.

        The request's own finished answer ends an alias of that request: it is newer and needs no judgement.
        """
        for old in rows:
            row = {**old, "entry_id": entry.id}
            connection.execute(_INSERT, row | {"checksum": checksum(row, _IMMUTABLE)})
        if entry.finish_reason != "length":
            place = (entry.scope, entry.request_key)
            connection.execute("DELETE FROM aliases WHERE scope = ? AND request_key = ?", place)

    def clear(self, connection: sqlite3.Connection, where: str, params: Params) -> None:
        connection.execute(f"DELETE FROM aliases WHERE {where}", params)  # noqa: S608 - made by `where_owner`

    def drop(self, numbers: Sequence[int]) -> int:
        """Delete rows by number; returns how many there were."""
        with self._db.transaction() as connection:
            return sum(
                connection.execute("DELETE FROM aliases WHERE number = ?", (number,)).rowcount for number in numbers
            )

    def faults(self, among: Rowids = ALL_ROWS) -> list[Fault]:
        """Rows that are damaged or whose entry is gone or elsewhere, without deleting anything; for `check`."""
        entry_scope = "(SELECT scope FROM entries WHERE id = aliases.entry_id) AS entry_scope"
        sql = f"SELECT {_NAMES}, {entry_scope} FROM aliases WHERE number > ? AND number <= ?"  # noqa: S608
        rows = self._db.rows(sql, among)
        return [
            Fault(*problem, table="aliases", number=row["number"])
            for row in rows
            if (problem := _problem_of(row)) is not None
        ]


def _problem_of(row: sqlite3.Row) -> tuple[str, str, str] | None:
    if row["checksum"] != checksum(row, _IMMUTABLE):
        return "damaged_alias", str(row["entry_id"]), "checksum does not match"
    if row["entry_scope"] != row["scope"]:
        return "orphan_alias", row["entry_id"], "its entry is gone"
    if row["size_bytes"] != _from_row(row).size_bytes:  # no reader looks at it, but the disk budget counts it
        return "damaged_alias", str(row["entry_id"]), "its size is not what it says"
    return None


def _to_row(alias: Alias, *, last_used_at: float) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(alias, name) for name in _FIELDS}
    # SQLite gives REAL columns back as float; the checksum must see the same type before and after.
    row |= {"created_at": float(alias.created_at), "last_used_at": float(last_used_at)}
    return row | {"size_bytes": alias.size_bytes, "checksum": checksum(row, _IMMUTABLE)}


def _from_row(row: sqlite3.Row) -> Alias:
    return Alias(**{name: row[name] for name in _FIELDS})


def _trim(connection: sqlite3.Connection, entry_id: str, *, newest: str) -> None:
    """Let the least recently used aliases of an entry go; the one just made is not among them."""
    connection.execute(
        "DELETE FROM aliases WHERE number IN (SELECT number FROM aliases WHERE entry_id = ? "
        "ORDER BY request_key = ? DESC, last_used_at DESC, number DESC LIMIT -1 OFFSET ?)",
        (entry_id, newest, MAX_ALIASES_PER_ENTRY),
    )
