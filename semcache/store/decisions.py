"""What the policy decided about each candidate, and what turned out to be true: for audits, marks and tuning.

The newest rows are kept. A row outlives its entry without the entry's prompt; it leaves with its user and its scope.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from semcache.store.database import Database, Params
from semcache.store.incidents import Incidents
from semcache.store.newest import drop_oldest, end_bytes, size_of
from semcache.store.rows import number, time_s, with_utf8

MAX_DECISIONS = 50_000
MAX_DECISION_BYTES = 64_000_000

Source = Literal["draft", "equivalence", "audit", "user"]


@dataclass(frozen=True)
class Decision:
    """One candidate for one request. `label` says whether both answers were the same, `source` how that is known."""

    request_id: str
    at: float  # seconds since the epoch
    scope: str
    user: str  # who asked
    entry_id: str
    prompt: str  # as asked
    matched_prompt: str | None  # of the entry; None once that is gone
    score: float  # cosine
    p_correct: float | None
    served: bool
    audit: bool  # the answer is to be computed again when the engine is idle
    reason: str
    features: Mapping[str, float]
    audited_at: float | None = None
    label: bool | None = None
    source: Source | None = None
    number: int = 0  # grows with each recorded decision


_FIELDS = tuple(item.name for item in fields(Decision) if item.name != "number")
_TEXTS = ("request_id", "scope", "user", "entry_id", "prompt", "matched_prompt", "reason", "source")
_OPTIONAL = ("matched_prompt", "source")
_SELECT = f"SELECT number, {', '.join(_FIELDS)} FROM decisions"  # noqa: S608 - column names of our own dataclass
# Of an entry that was deleted while its answer was on the way, no text is kept.
_VALUES = ", ".join(
    "(SELECT :matched_prompt WHERE EXISTS (SELECT 1 FROM entries WHERE id = :entry_id))"
    if name == "matched_prompt"
    else f":{name}"
    for name in _FIELDS
)
_INSERT = (
    f"INSERT INTO decisions ({', '.join(_FIELDS)}, end_bytes) VALUES ({_VALUES}, {end_bytes('decisions')}) "  # noqa: S608
    "ON CONFLICT (request_id, entry_id) DO NOTHING"
)
_DUE = "served = 1 AND audit = 1 AND audited_at IS NULL AND label IS NULL"
_JUDGED = "served = 1 AND source IN ('audit', 'user')"


class Decisions:
    """The `decisions` table."""

    def __init__(self, db: Database, incidents: Incidents, clock: Callable[[], float]) -> None:
        self._db = db
        self._incidents = incidents
        self._clock = clock

    def record(self, decisions: Sequence[Decision]) -> bool:
        """Add decisions, all or none; one that is there already stays as it is."""
        if not decisions:
            return True
        with self._incidents.writing("decisions"), self._db.transaction() as connection:
            connection.executemany(_INSERT, [_to_row(item) for item in decisions])
            drop_oldest(connection, "decisions", max_rows=MAX_DECISIONS, max_bytes=MAX_DECISION_BYTES)
            return True
        return False

    def label(self, request_id: str, entry_id: str, same: bool, source: Source) -> bool:
        """Note what is true; the user's word is final for everyone but the user. False when nothing was changed."""
        sql = (
            "UPDATE decisions SET label = ?, source = ?, "
            "audited_at = CASE WHEN ? = 'audit' THEN ? ELSE audited_at END "
            "WHERE request_id = ? AND entry_id = ? AND (source IS NOT 'user' OR ? = 'user')"
        )
        return self._change(sql, (int(same), source, source, self._clock(), request_id, entry_id, source))

    def close_audit(self, request_id: str, entry_id: str) -> bool:
        """Note an audit that told nothing; False when there is no such decision."""
        sql = "UPDATE decisions SET audited_at = ? WHERE request_id = ? AND entry_id = ?"
        return self._change(sql, (self._clock(), request_id, entry_id))

    def recent(
        self,
        *,
        scopes: Sequence[str] | None = None,
        users: Sequence[str] | None = None,
        limit: int = 1000,
        served: bool | None = None,
        labelled: bool | None = None,
        newest_first: bool = True,
    ) -> list[Decision]:
        """The newest decisions that match every given filter, in either order; a limit of -1 is none."""
        where, params = _where(scopes, users)
        if served is not None:
            where, params = f"{where} AND served = ?", (*params, int(served))
        if labelled is not None:
            where += f" AND label IS {'NOT ' if labelled else ''}NULL"
        newest = self._select(where, params, "number DESC", limit)
        return newest if newest_first else newest[::-1]

    def of_request(self, request_id: str) -> list[Decision]:
        """What was considered for one request, in the order it was recorded."""
        return self._select("request_id = ?", (request_id,), "number", -1)

    def due_audits(self, limit: int) -> list[Decision]:
        """Served decisions to audit that nobody has judged yet, oldest first."""
        return self._select(_DUE, (), "number", limit)

    def num_due(self) -> int:
        """How many audits `due_audits` would give without a limit."""
        with self._incidents.reading("decisions"):
            return self._db.number(f"SELECT count(*) FROM decisions WHERE {_DUE}")  # noqa: S608
        return 0

    def wrong_hits(self, scopes: Sequence[str] | None = None, users: Sequence[str] | None = None) -> tuple[int, int]:
        """How many served decisions were judged by an audit or a user, and how many of them were wrong."""
        where, params = _where(scopes, users)
        sql = f"SELECT count(*), total(label = 0) FROM decisions WHERE {_JUDGED} AND {where}"  # noqa: S608
        with self._incidents.reading("decisions"):
            row = self._db.row(sql, params)
            return (int(row[0]), int(row[1])) if row is not None else (0, 0)
        return 0, 0

    def wrong_hits_by_user(self) -> dict[str, tuple[int, int]]:
        """`wrong_hits` of each user that has any judged one."""
        sql = f"SELECT user, count(*), total(label = 0) FROM decisions WHERE {_JUDGED} GROUP BY user"  # noqa: S608
        with self._incidents.reading("decisions"):
            return {row[0]: (int(row[1]), int(row[2])) for row in self._db.rows(sql)}
        return {}

    def clear(self, connection: sqlite3.Connection, where: str, params: Params) -> None:
        """Delete what `where_owner` names; may raise sqlite3.Error."""
        connection.execute(f"DELETE FROM decisions WHERE {where}", params)  # noqa: S608

    def _change(self, sql: str, params: Params) -> bool:
        with self._incidents.writing("decision"), self._db.transaction() as connection:
            return connection.execute(sql, params).rowcount > 0
        return False

    def _select(self, where: str, params: tuple[Any, ...], order: str, limit: int) -> list[Decision]:
        with self._incidents.reading("decisions"):
            rows = self._db.rows(f"{_SELECT} WHERE {where} ORDER BY {order} LIMIT ?", (*params, limit))
            return [decision for row in rows if (decision := self._from_row(row)) is not None]
        return []

    def _from_row(self, row: sqlite3.Row) -> Decision | None:
        """None for a row that no longer holds a decision; there is nothing to make up for it."""
        values: dict[str, Any] = {name: row[name] for name in ("number", *_FIELDS)}
        try:
            values["features"] = {str(name): float(value) for name, value in json.loads(row["features"]).items()}
            _require_whole(values)
            for name in ("served", "audit"):
                values[name] = bool(int(row[name]))
            values["label"] = None if row["label"] is None else bool(int(row["label"]))
            return Decision(**values)
        except (AttributeError, TypeError, ValueError) as error:
            self._incidents.damage("damaged_decisions", f"decision {row['number']}", error)
            return None


def _require_whole(values: Mapping[str, Any]) -> None:
    """ValueError for what no decision holds: no checksum covers the columns, and people are shown and told of all."""
    for name in _TEXTS:
        if not isinstance(values[name], str) and not (values[name] is None and name in _OPTIONAL):
            raise ValueError(f"{name} is no text")
    times = [value for name in ("at", "audited_at") if (value := values[name]) is not None]
    numbers = [values["score"], *times, *values["features"].values()]
    numbers += [] if values["p_correct"] is None else [values["p_correct"]]
    if any(number(value) != value for value in numbers) or any(time_s(value) != value for value in times):
        raise ValueError("a number or a time is none")


def _to_row(decision: Decision) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(decision, name) for name in _FIELDS}
    row["features"] = json.dumps({name: float(value) for name, value in decision.features.items()})
    row["prompt"] = with_utf8(decision.prompt)
    row["matched_prompt"] = None if decision.matched_prompt is None else with_utf8(decision.matched_prompt)
    row["score"] = float(decision.score)
    row["p_correct"] = None if decision.p_correct is None else float(decision.p_correct)
    for name in ("served", "audit"):
        row[name] = int(row[name])
    row["label"] = None if decision.label is None else int(decision.label)
    row["size_bytes"] = size_of(row["prompt"], row["matched_prompt"], row["features"])
    return row


def _where(scopes: Sequence[str] | None, users: Sequence[str] | None) -> tuple[str, tuple[Any, ...]]:
    clauses = ["1"]
    params: list[str] = []
    for column, names in (("scope", scopes), ("user", users)):
        if names is not None:
            clauses.append(f"{column} IN (SELECT value FROM json_each(?))")  # noqa: S608
            params.append(json.dumps(list(names)))
    return " AND ".join(clauses), tuple(params)
