"""What each user asked and what it saved: one history row a request, and counters that outlive the history."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from semcache.store.database import Database
from semcache.store.incidents import Incidents
from semcache.store.newest import drop_oldest, end_bytes, size_of
from semcache.store.rows import ALL_ROWS, Fault, Rowids, checksum, drop_damaged, number, with_utf8

# History is for people to look at; the counters keep the sums.
MAX_HISTORY_ROWS = 10_000
MAX_HISTORY_BYTES = 64_000_000
OUTCOMES = ("exact", "semantic", "draft", "prefix", "miss")


@dataclass(frozen=True)
class UsageRecord:
    """One request that ended. `outcome` is None when it failed before the look-up."""

    id: str
    at: float  # seconds since the epoch
    user: str
    model: str
    outcome: str | None
    reason: str | None
    strategy: str | None
    scope: str | None
    state: str
    prompt: str
    answer: str
    receipt: Mapping[str, Any]  # JSON-able, the whole AskReceipt
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    saved_ms: float = 0.0


@dataclass(frozen=True)
class HistoryRow:
    """One row of the request history."""

    id: str
    at: float
    user: str
    model: str
    outcome: str | None
    reason: str | None
    strategy: str | None
    scope: str | None
    state: str
    error: str | None
    prompt: str
    answer: str
    receipt: dict[str, Any]


@dataclass(frozen=True)
class UserUsage:
    """Sums for one user since the data directory was made."""

    user: str
    requests: int = 0
    errors: int = 0
    exact: int = 0
    semantic: int = 0
    draft: int = 0
    prefix: int = 0
    miss: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    saved_ms: float = 0.0
    first_seen: float | None = None
    last_seen: float | None = None
    disk_bytes: int = 0
    ram_bytes: int = 0

    @property
    def outcomes(self) -> dict[str, int]:
        return {outcome: getattr(self, outcome) for outcome in OUTCOMES}


@dataclass(frozen=True)
class UsageReport:
    total: UserUsage
    users: tuple[UserUsage, ...]  # most requests first

    @staticmethod
    def empty() -> UsageReport:
        return UsageReport(UserUsage(user=""), ())


_HISTORY = tuple(item.name for item in fields(HistoryRow))
_SUMS = (
    "requests", "errors", *OUTCOMES, "prompt_tokens", "cached_tokens", "completion_tokens", "drafted_tokens",
    "accepted_tokens", "saved_ms",
)  # fmt: skip
_INSERT_HISTORY = (
    f"INSERT INTO requests ({', '.join(_HISTORY)}, checksum, end_bytes) "  # noqa: S608 - our own column names
    f"VALUES ({', '.join(':' + name for name in _HISTORY)}, :checksum, {end_bytes('requests')})"
)
_SELECT = f"SELECT number, {', '.join(_HISTORY)}, checksum FROM requests"  # noqa: S608 - our own column names
_ADD_USAGE = (
    f"INSERT INTO usage (user, {', '.join(_SUMS)}, first_seen, last_seen) "  # noqa: S608 - our own column names
    f"VALUES (:user, {', '.join(':' + name for name in _SUMS)}, :at, :at) ON CONFLICT (user) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in _SUMS)
    + ", first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)"
)
_OF_PRINCIPAL = (
    "WHERE :principal IS NULL OR user = :principal OR substr(user, 1, length(:principal) + 1) = :principal || '/'"
)
# Whose an entry was that is gone is not known any more, so the prompts of all of them go. In a CASE, because SQLite may
# look at the parts of an AND in any order, and what is no JSON fails the whole statement.
_WITH_GONE = f"""{_SELECT}
    WHERE number > ? AND number <= ? AND CASE WHEN typeof(receipt) = 'text' AND json_valid(receipt) THEN
        json_extract(receipt, '$.cache.matched_prompt') IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM entries WHERE id = json_extract(receipt, '$.cache.entry')) END"""  # noqa: S608
# Receipts looked through at once: about as many bytes as other long work holds the lock for.
_PAGE_ROWS = 256
# One step in an index for each user, however many rows that user has.
_USERS = """
    WITH RECURSIVE {table}_users (user) AS (
        SELECT min(user) FROM {table}
        UNION ALL SELECT (SELECT min(user) FROM {table} WHERE user > {table}_users.user) FROM {table}_users
            WHERE user IS NOT NULL
    ) SELECT user FROM {table}_users WHERE user IS NOT NULL"""
_WITH_USERS = ("usage", "entries", "blocks", "aliases")


class UsageBook:
    """The tables `requests` and `usage`.

    A history row has a checksum, since it is somebody's text: whose, a damaged one does not say. A sum has none.
    """

    def __init__(self, db: Database, incidents: Incidents) -> None:
        self._db = db
        self._incidents = incidents

    def record(self, record: UsageRecord) -> None:
        """Add one request to the history and to its user's sums, both or neither."""
        row: dict[str, Any] = {item.name: getattr(record, item.name) for item in fields(UsageRecord)}
        row |= {"receipt": json.dumps(dict(record.receipt)), "at": float(record.at)}
        for name in ("prompt", "answer", "error"):
            row[name] = None if row[name] is None else with_utf8(row[name])
        row["size_bytes"] = size_of(row["prompt"], row["answer"], row["receipt"])
        row |= {"checksum": checksum(row, _HISTORY), "requests": 1, "errors": int(record.error is not None)}
        row |= {outcome: int(record.outcome == outcome) for outcome in OUTCOMES}
        cache = record.receipt.get("cache") or {}
        with self._db.transaction() as connection:
            inserted = connection.execute(_INSERT_HISTORY, row).lastrowid
            if cache.get("entry") and inserted is not None:  # it may have been deleted while it was told of
                _forget_matches(connection, inserted - 1, inserted)
            drop_oldest(connection, "requests", max_rows=MAX_HISTORY_ROWS, max_bytes=MAX_HISTORY_BYTES)
            connection.execute(_ADD_USAGE, row)

    def recent(self, limit: int, principal: str | None = None) -> list[HistoryRow]:
        """The newest requests first: of everybody, or of one principal and its sub-users."""
        sql = f"{_SELECT} {_OF_PRINCIPAL} ORDER BY number DESC LIMIT :limit"
        rows = self._db.rows(sql, {"principal": principal, "limit": limit})
        return [_history(row) for row in rows if self._is_whole(row)]

    def _is_whole(self, row: sqlite3.Row) -> bool:
        """False for a damaged row, which is counted and deleted."""
        if row["checksum"] == checksum(row, _HISTORY):
            return True
        self._incidents.damage("damaged_history", f"request {row['number']}", "checksum does not match")
        with self._incidents.writing("damaged history"), self._db.transaction() as connection:
            drop_damaged(connection, "requests", row["number"], _HISTORY)
        return False

    def users(self) -> list[str]:
        """Everybody who asked or stored anything, in order."""
        return sorted({str(row[0]) for table in _WITH_USERS for row in self._db.rows(_USERS.format(table=table))})

    def report(self, ram_bytes: Mapping[str, int]) -> UsageReport:
        """Every user's sums, with what is stored for them now."""
        stored = self._db.rows("SELECT user, sum(size_bytes) FROM stored_bytes GROUP BY user")
        disk_bytes: dict[str, int] = {str(row[0]): int(number(row[1])) for row in stored}
        seen = {str(row["user"]): _sums(row) for row in self._db.rows("SELECT * FROM usage")}
        users = [
            UserUsage(user, **seen.get(user, {}), disk_bytes=disk_bytes.get(user, 0), ram_bytes=ram_bytes.get(user, 0))
            for user in sorted({*seen, *disk_bytes})
        ]
        return UsageReport(_total(users), tuple(sorted(users, key=lambda usage: (-usage.requests, usage.user))))

    def forget_matches(self) -> None:
        """Take the prompts of entries that are gone from all receipts, and let others in between."""
        after = -(1 << 63)
        page = "SELECT max(number) FROM (SELECT number FROM requests WHERE number > ? ORDER BY number LIMIT ?)"
        while (row := self._db.row(page, (after, _PAGE_ROWS))) is not None and row[0] is not None:
            with self._db.transaction() as connection:
                _forget_matches(connection, after, row[0])
            after = row[0]

    def forget(self, connection: sqlite3.Connection, user: str, damaged: Sequence[Fault]) -> int:
        """Delete a user's history and sums, and rows that are damaged: these do not say any more whose they were."""
        num_rows = connection.execute("DELETE FROM requests WHERE user = ?", (user,)).rowcount
        for fault in damaged:
            num_rows += drop_damaged(connection, "requests", fault.number, _HISTORY)
        return num_rows + connection.execute("DELETE FROM usage WHERE user = ?", (user,)).rowcount

    def faults(self, among: Rowids = ALL_ROWS) -> list[Fault]:
        """History rows that are damaged, without deleting anything; lets others in between."""
        found: list[Fault] = []
        after, last = among
        sql = f"{_SELECT} WHERE number > ? AND number <= ? ORDER BY number LIMIT ?"
        while page := self._db.rows(sql, (after, last, _PAGE_ROWS)):
            after = page[-1]["number"]
            found += [
                Fault("damaged_history", str(row["id"]), "checksum does not match", "requests", row["number"])
                for row in page
                if row["checksum"] != checksum(row, _HISTORY)
            ]
        return found


def _forget_matches(connection: sqlite3.Connection, after: int, last: int) -> None:
    for row in connection.execute(_WITH_GONE, (after, last)).fetchall():
        if row["checksum"] != checksum(row, _HISTORY):  # nobody is shown it, and it must not keep the prompt
            connection.execute("DELETE FROM requests WHERE number = ?", (row["number"],))
            continue
        receipt = json.loads(row["receipt"])
        receipt["cache"]["matched_prompt"] = None
        changed = {name: row[name] for name in _HISTORY} | {"receipt": json.dumps(receipt)}
        connection.execute(
            "UPDATE requests SET receipt = ?, checksum = ? WHERE number = ?",
            (changed["receipt"], checksum(changed, _HISTORY), row["number"]),
        )


def _history(row: sqlite3.Row) -> HistoryRow:
    """A row that was damaged before rows had a checksum costs what was hit: its receipt is empty."""
    values: dict[str, Any] = {name: value if (value := row[name]) is None else str(value) for name in _HISTORY}
    try:
        receipt = json.loads(row["receipt"])
    except (TypeError, ValueError, RecursionError):
        receipt = None
    values |= {"at": number(row["at"]), "receipt": receipt if isinstance(receipt, dict) else {}}
    return HistoryRow(**values)


def _sums(row: sqlite3.Row) -> dict[str, Any]:
    """The counters of one user; one that is damaged starts again from 0."""
    sums: dict[str, Any] = {name: int(number(row[name])) for name in _SUMS}
    times = {name: number(row[name]) for name in ("first_seen", "last_seen")}
    return sums | times | {"saved_ms": number(row["saved_ms"])}


def _total(users: list[UserUsage]) -> UserUsage:
    sums = {name: sum(getattr(usage, name) for usage in users) for name in (*_SUMS, "disk_bytes", "ram_bytes")}
    first = [usage.first_seen for usage in users if usage.first_seen is not None]
    last = [usage.last_seen for usage in users if usage.last_seen is not None]
    return UserUsage(user="", **sums, first_seen=min(first, default=None), last_seen=max(last, default=None))
