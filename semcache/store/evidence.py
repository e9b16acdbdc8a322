"""What a policy has learned in a scope, kept across restarts. Knows no policy: the state is text it does not read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from semcache.store.database import Database
from semcache.store.entries import where_owner
from semcache.store.incidents import Incidents
from semcache.store.rows import ALL_ROWS, Fault, Rowids, checksum, drop_damaged

MAX_NEGATIVES_PER_SCOPE = 10_000


@dataclass(frozen=True)
class EntryEvidence:
    """What was seen of one entry: compared answers, its own offset from the scope's model and its likelihood gaps."""

    entry_id: str
    num_same: int
    num_other: int
    offset: float
    precision: float
    num_regrets: int
    mean_regret: float


@dataclass(frozen=True)
class StoredEvidence:
    """All that is kept of a scope. `state` is None for a fresh start."""

    state: str | None
    entries: tuple[EntryEvidence, ...]
    negatives: frozenset[str]


_FIELDS = tuple(item.name for item in fields(EntryEvidence))
_REALS = ("offset", "precision", "mean_regret")
_ENTRY_COLUMNS = ("scope", *_FIELDS)
# An entry that is gone leaves no evidence; "offset" is a word of SQL.
_COLUMNS = ", ".join(f'"{name}"' for name in (*_ENTRY_COLUMNS, "checksum"))
_INSERT = (
    f"INSERT OR REPLACE INTO entry_evidence ({_COLUMNS}) "  # noqa: S608 - column names of our own dataclass
    f"SELECT {', '.join(':' + name for name in (*_ENTRY_COLUMNS, 'checksum'))} "
    "WHERE EXISTS (SELECT 1 FROM entries WHERE id = :entry_id AND scope = :scope)"
)
_STATE = ("scope", "state")
# The same pairs twice: of one that is damaged in a table the other one still knows. One too many names no wording.
_NEGATIVES = ("negatives", "negative_copies")


class EvidenceTable:
    """The tables of evidence and of negative pairs; foreign keys end evidence with its entry."""

    def __init__(self, db: Database, incidents: Incidents, clock: Callable[[], float]) -> None:
        self._db = db
        self._incidents = incidents
        self._clock = clock

    def load_evidence(self, scope: str) -> StoredEvidence | None:
        """Everything of a scope that is whole; what is damaged is counted, deleted and absent.

        None where the database refuses: what is stored is not known then, which is not the same as nothing.
        """
        with self._incidents.reading("evidence"):
            with self._db.lock:
                state = self._whole("scope_evidence", _STATE, "scope", scope)
                entries = self._whole("entry_evidence", _ENTRY_COLUMNS, "scope", scope)
                negatives = self._negatives(scope)
            return StoredEvidence(
                state=state[0]["state"] if state else None,
                entries=tuple(_from_row(row) for row in entries),
                negatives=negatives,
            )
        return None

    def load_negatives(self, scope: str) -> frozenset[str] | None:
        """The negative pairs of a scope alone; None as for `load_evidence`."""
        with self._incidents.reading("negative pairs"):
            return self._negatives(scope)
        return None

    def of_entry(self, entry_id: str) -> EntryEvidence | None:
        """What was last saved of one entry."""
        with self._incidents.reading("evidence"):
            for row in self._whole("entry_evidence", _ENTRY_COLUMNS, "entry_id", entry_id):
                return _from_row(row)
        return None

    def save_evidence(self, scope: str, state: str, entries: Sequence[EntryEvidence]) -> bool:
        """Keep a scope's state and what is new of its entries, all or nothing; entries that are gone are skipped."""
        row = {"scope": scope, "state": state}
        with self._incidents.writing("evidence"), self._db.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO scope_evidence (scope, state, checksum, updated_at) VALUES (?, ?, ?, ?)",
                (scope, state, checksum(row, _STATE), self._clock()),
            )
            connection.executemany(_INSERT, [_to_row(scope, item) for item in entries])
            return True
        return False

    def add_negative(self, scope: str, pair_key: str) -> bool:
        """Remember that two prompts do not ask the same; the oldest pairs of a scope leave when there are too many."""
        with self._incidents.writing("negative pair"), self._db.transaction() as connection:
            for table in _NEGATIVES:
                connection.execute(
                    f"INSERT OR REPLACE INTO {table} (scope, pair_key, at) VALUES (?, ?, ?)",  # noqa: S608
                    (scope, pair_key, self._clock()),
                )
                connection.execute(
                    f"DELETE FROM {table} WHERE scope = ? AND number <= "  # noqa: S608
                    f"(SELECT number FROM {table} WHERE scope = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
                    (scope, scope, MAX_NEGATIVES_PER_SCOPE),
                )
            return True
        return False

    def _negatives(self, scope: str) -> frozenset[str]:
        """What either table says; where they differ it is written to both."""
        with self._db.lock:
            one, other = (
                frozenset(
                    str(row["pair_key"])
                    for row in self._db.rows(f"SELECT pair_key FROM {table} WHERE scope = ?", (scope,))  # noqa: S608
                )
                for table in _NEGATIVES
            )
            for pair_key in one ^ other:
                self._incidents.damage("damaged_evidence", "negative pair", "only one of its two rows is there")
                self.add_negative(scope, pair_key)
        return one | other

    def _whole(self, table: str, names: Sequence[str], key: str, value: str) -> list[sqlite3.Row]:
        rows = self._db.rows(f"SELECT rowid AS number, * FROM {table} WHERE {key} = ?", (value,))  # noqa: S608
        damaged = [row["number"] for row in rows if row["checksum"] != checksum(row, names)]
        for number in damaged:
            self._incidents.damage("damaged_evidence", f"{table} {number}", "checksum does not match")
            with self._incidents.writing("damaged evidence"), self._db.transaction() as connection:
                drop_damaged(connection, table, number, names)
        # SQLite believes its index; a damaged one can name the row of another key.
        return [row for row in rows if row["number"] not in damaged and row[key] == value]

    # For the rest of the store; these may raise sqlite3.Error

    def clear(
        self,
        connection: sqlite3.Connection,
        *,
        scopes: Sequence[str] | None,
        user: str | None,
        namespace: str | None,
        touched: Sequence[str],
    ) -> None:
        """Delete state and negative pairs of the scopes that were cleared as a whole.

        With a user these are the user's own scopes, and of the `touched` shared ones those that nobody has anything in
        any more.
        """
        where, params = where_owner(scopes=scopes, user=None, namespace=namespace)
        if user is not None:
            own = f"user:{user}"
            where += (
                " AND (scope = ? OR substr(scope, 1, length(?)) = ? OR (scope IN (SELECT value FROM json_each(?)) "
                "AND scope NOT IN (SELECT scope FROM entries)))"
            )
            params = (*params, own, f"{own}#", f"{own}#", json.dumps(list(touched)))
        for table in ("scope_evidence", *_NEGATIVES):
            connection.execute(f"DELETE FROM {table} WHERE {where}", params)  # noqa: S608

    def faults(self, among: Rowids = ALL_ROWS) -> list[Fault]:
        """Rows that are damaged or whose entry is gone or elsewhere, without deleting anything; for `check`."""
        states = self._db.rows("SELECT rowid AS number, * FROM scope_evidence WHERE rowid > ? AND rowid <= ?", among)
        entries = self._db.rows(
            "SELECT rowid AS number, *, (SELECT scope FROM entries WHERE id = entry_id) AS entry_scope "
            "FROM entry_evidence WHERE rowid > ? AND rowid <= ?",
            among,
        )
        damaged = "damaged_evidence", "checksum does not match"
        orphan = "orphan_evidence", "its entry is gone"
        found = [
            (damaged, str(row["scope"]), "scope_evidence", row["number"])
            for row in states
            if row["checksum"] != checksum(row, _STATE)
        ]
        for row in entries:
            is_whole = row["checksum"] == checksum(row, _ENTRY_COLUMNS)
            if not is_whole or row["entry_scope"] != row["scope"]:
                found.append((orphan if is_whole else damaged, str(row["entry_id"]), "entry_evidence", row["number"]))
        return [Fault(kind, item, detail, table, number) for (kind, detail), item, table, number in found]


def _from_row(row: sqlite3.Row) -> EntryEvidence:
    return EntryEvidence(**{name: row[name] for name in _FIELDS})


def _to_row(scope: str, evidence: EntryEvidence) -> Mapping[str, Any]:
    row: dict[str, Any] = {"scope": scope} | {name: getattr(evidence, name) for name in _FIELDS}
    # SQLite gives REAL columns back as float; the checksum must see the same type before and after.
    row |= {name: float(row[name]) for name in _REALS}
    return row | {"checksum": checksum(row, _ENTRY_COLUMNS)}
