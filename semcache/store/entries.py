"""Stored answers: one row each, verified by checksum on every read."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from semcache.errors import UsageError
from semcache.store.database import Database, Params
from semcache.store.incidents import Incidents
from semcache.store.rows import ALL_ROWS, Fault, Rowids, checksum, drop_damaged, number, oldest_live, time_s

# Embeddings read at once: about 6 MB, and other threads get the lock in between.
PAGE_ROWS = 4096

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letter that looks like a digit

SORTS = {
    "used": "last_used_at DESC, id DESC",
    "created": "created_at DESC, id DESC",
    "hits": "hits DESC, last_used_at DESC, id DESC",
    "size": "size_bytes DESC, id DESC",
}


def new_entry_id(now_s: float) -> str:
    """`e_` and 16 letters: 48 bits of milliseconds, so that ids sort by age, and 32 random bits."""
    number = (int(now_s * 1000) & (1 << 48) - 1) << 32 | secrets.randbits(32)
    return "e_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(75, -1, -5))


@dataclass(frozen=True)
class Entry:
    """One answer and everything that decided it."""

    id: str
    scope: str
    model: str
    fingerprint: str
    user: str
    strategy: str
    context_key: str
    params_key: str
    request_key: str
    prompt: str  # last user message
    messages: tuple[tuple[str, str], ...]  # (role, content)
    sampling: Mapping[str, Any]  # JSON-able
    answer: str
    answer_tokens: tuple[int, ...]
    finish_reason: str
    num_prompt_tokens: int
    num_completion_tokens: int
    created_at: float
    embedding: bytes | None = None  # float32, little endian; made by `pack_vector`
    embedder: str | None = None
    last_used_at: float = 0.0
    expires_at: float | None = None  # unless it is pinned; by the TTL of the store that it is read from
    hits: int = 0
    pinned: bool = False
    compute_ms: float = 0.0  # what computing the answer cost

    @property
    def vector(self) -> np.ndarray | None:
        """The embedding as numbers; None when there is none."""
        if self.embedding is None:
            return None
        return np.frombuffer(self.embedding[: len(self.embedding) // 4 * 4], dtype="<f4")

    @property
    def size_bytes(self) -> int:
        """Roughly what the row takes on disk."""
        texts = (self.prompt, self.answer, *(content for _, content in self.messages))
        return (
            512
            + sum(len(text.encode(errors="replace")) for text in texts)
            + 4 * len(self.answer_tokens)
            + len(self.embedding or b"")
        )


def pack_vector(vector: np.ndarray) -> bytes:
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


# Use moves these; everything else is covered by the checksum.
_MUTABLE = frozenset({"last_used_at", "hits", "pinned"})
_FIELDS = tuple(item.name for item in fields(Entry))
_IMMUTABLE = tuple(name for name in _FIELDS if name not in _MUTABLE)
_COLUMNS = (*_FIELDS, "size_bytes", "checksum")
_SELECT = f"SELECT {', '.join(_COLUMNS)}, rowid AS number FROM entries"  # noqa: S608 - column names of our own dataclass
_INSERT = f"INSERT INTO entries ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + name for name in _COLUMNS)})"  # noqa: S608


# Not past the TTL, or pinned.
LIVE = "(pinned = 1 OR created_at > ?)"


def row_checksum(row: Mapping[str, Any] | sqlite3.Row) -> str:
    """Over every column that never changes."""
    return checksum(row, _IMMUTABLE)


def _to_row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(entry, name) for name in _FIELDS}
    row["messages"] = json.dumps(entry.messages, ensure_ascii=False)
    row["sampling"] = json.dumps(dict(entry.sampling), ensure_ascii=False, sort_keys=True)
    row["answer_tokens"] = np.asarray(entry.answer_tokens, dtype="<i4").tobytes()
    row["pinned"] = int(entry.pinned)
    row["expires_at"] = None  # what counts is the TTL of the day; an older version wrote that of the entry's day
    # SQLite gives REAL columns back as float; the checksum must see the same type before and after.
    for name in ("created_at", "last_used_at", "compute_ms"):
        row[name] = float(row[name])
    row["size_bytes"] = entry.size_bytes
    row["checksum"] = row_checksum(row)
    return row


def _is_whole(row: sqlite3.Row) -> bool:
    """Also whether the disk budget counts it right, which no reader looks at."""
    return bool(row["checksum"] == row_checksum(row)) and bool(row["size_bytes"] == _from_row(row).size_bytes)


def _from_row(row: sqlite3.Row, ttl_s: float = 0) -> Entry:
    values: dict[str, Any] = {name: row[name] for name in _FIELDS}
    values["messages"] = tuple((role, content) for role, content in json.loads(row["messages"]))
    values["sampling"] = json.loads(row["sampling"])
    values["answer_tokens"] = tuple(np.frombuffer(row["answer_tokens"], dtype="<i4").tolist())
    values["pinned"] = bool(row["pinned"])
    values["expires_at"] = row["created_at"] + ttl_s if ttl_s > 0 else None
    # No checksum covers these two.
    values["last_used_at"], values["hits"] = time_s(row["last_used_at"]), int(number(row["hits"]))
    return Entry(**values)


class Entries:
    """The `entries` table. A damaged row is deleted, counted and absent."""

    def __init__(self, db: Database, incidents: Incidents, ttl_s: float) -> None:
        self._db = db
        self._incidents = incidents
        self._ttl_s = ttl_s

    def select(
        self, where: str, params: Params, now_s: float, *, order: str = SORTS["created"], limit: int = -1
    ) -> list[Entry]:
        """Verified entries, pinned or unexpired; `where` uses positional parameters, a limit of -1 is none."""
        sql = f"{_SELECT} WHERE ({where}) AND {LIVE} ORDER BY {order} LIMIT ?"
        num_asked = limit
        while True:
            rows = self._db.rows(sql, (*params, self.oldest_live(now_s), num_asked))
            whole = self._without_damaged(rows)
            if limit < 0 or len(rows) < num_asked or len(whole) >= limit:
                break
            num_asked *= 2  # the damaged ones took places, and are still there if they could not be deleted
        return [_from_row(row, self._ttl_s) for row in (whole if limit < 0 else whole[:limit])]

    def _without_damaged(self, rows: Sequence[sqlite3.Row]) -> list[sqlite3.Row]:
        damaged = [row for row in rows if row["checksum"] != row_checksum(row)]
        for row in damaged:
            self._incidents.damage("damaged_entries", f"entry {row['id']}", "checksum does not match")
        if damaged:
            self._drop_damaged([row["number"] for row in damaged])
        bad = {row["number"] for row in damaged}
        return [row for row in rows if row["number"] not in bad]

    def oldest_live(self, now_s: float) -> float:
        """The value of `LIVE`."""
        return oldest_live(now_s, self._ttl_s)

    def _drop_damaged(self, numbers: Sequence[int]) -> None:
        try:
            with self._db.transaction() as connection:
                for rowid in numbers:
                    drop_damaged(connection, "entries", rowid, _IMMUTABLE)
        except sqlite3.Error as error:
            self._incidents.failure("write_failures", f"deletion of {len(numbers)} damaged entries", error)

    def find_exact(self, scope: str, request_key: str, now_s: float) -> list[Entry]:
        found = self.select("scope = ? AND request_key = ?", (scope, request_key), now_s)
        # SQLite believes its index; a damaged one can name the row of another request.
        right = [entry for entry in found if (entry.scope, entry.request_key) == (scope, request_key)]
        self.note_misled(len(found) - len(right))
        return right

    def note_misled(self, num: int) -> None:
        """Count entries that an index led to and that are not what it said."""
        if num:
            self._db.is_corrupt = True
            self._incidents.damage("damaged_entries", f"{num} entries", "found under a wrong key")

    def by_ids(self, ids: Iterable[object], now_s: float) -> dict[str, Entry]:
        """Those of these entries that there are; an id that damage made no text of is nobody's."""
        names = [entry_id for entry_id in ids if isinstance(entry_id, str)]
        found = self.select("id IN (SELECT value FROM json_each(?))", (json.dumps(names),), now_s)
        return {entry.id: entry for entry in found}

    def listing(
        self, *, scopes: Sequence[str] | None, user: str | None, principal: str | None, shared: str | None,
        limit: int, sort: str, match: str | None, now_s: float,
    ) -> list[Entry]:  # fmt: skip
        """For people: `match` is part of prompt or answer, or the start of an id."""
        if sort not in SORTS:
            raise UsageError(f"cannot sort entries by {sort!r}; use one of {', '.join(SORTS)}", param="sort")
        where, params = where_owner(scopes=scopes, user=user, namespace=None)
        if principal is not None:
            where += " AND (user = ? OR substr(user, 1, length(?) + 1) = ? || '/' OR scope = ?)"
            params = (*params, principal, principal, principal, shared)
        if match is not None:
            where += " AND (instr(lower(prompt), lower(?)) OR instr(lower(answer), lower(?)) OR substr(id, 1, ?) = ?)"
            params = (*params, match, match, len(match), match)
        return self.select(where, params, now_s, order=SORTS[sort], limit=limit)

    def insert(self, connection: sqlite3.Connection, entry: Entry) -> list[tuple[str, str]]:
        """Add an entry in place of older answers to the same request; returns (scope, id) of what it replaced.

        A finished answer replaces finished ones. A cut one replaces cut ones of its own length: a longer cut answer
        may serve a request that a shorter one cannot.
        """
        row = _to_row(entry)
        replaced = connection.execute(
            "DELETE FROM entries WHERE id = :id OR (scope = :scope AND request_key = :request_key "
            "AND (finish_reason = 'length') = (:finish_reason = 'length') "
            "AND (finish_reason <> 'length' OR num_completion_tokens = :num_completion_tokens)) "
            "RETURNING scope, id, pinned",
            row,
        ).fetchall()
        row["pinned"] |= int(any(old["pinned"] for old in replaced))  # a refreshed answer stays pinned
        connection.execute(_INSERT, row)
        return [(old["scope"], old["id"]) for old in replaced]

    def touch(self, entry_id: str, now_s: float) -> None:
        with self._db.transaction(waits=False) as connection:
            connection.execute(
                "UPDATE entries SET hits = hits + 1, last_used_at = max(last_used_at, ?) WHERE id = ?",
                (now_s, entry_id),
            )

    def delete(self, numbers: Sequence[int], where: str, params: Sequence[Any]) -> list[tuple[str, str]]:
        """Delete of these rows what is still `where`; returns (scope, id) of each.

        By rowid, so that no index has to be right; by the condition too, since SQLite may give the rowid of a row that
        is gone to a new one.
        """
        sql = (
            "DELETE FROM entries NOT INDEXED WHERE rowid IN (SELECT value FROM json_each(?)) "  # noqa: S608
            f"AND ({where}) RETURNING scope, id"
        )
        with self._db.transaction() as connection:
            rows = connection.execute(sql, (json.dumps(list(numbers)), *params)).fetchall()
        return [(row["scope"], row["id"]) for row in rows]

    def numbers(self, where: str, params: Params) -> list[int]:
        """The rowids of what is `where`, damaged or not."""
        return [row["number"] for row in self._db.rows(f"SELECT rowid AS number FROM entries WHERE {where}", params)]  # noqa: S608

    def scopes(self, where: str, params: Params) -> list[str]:
        return [row["scope"] for row in self._db.rows(f"SELECT DISTINCT scope FROM entries WHERE {where}", params)]  # noqa: S608

    def faults(self, among: Rowids = ALL_ROWS) -> list[Fault]:
        """Rows that fail their checksum or are not of their size, without deleting anything; for `check`."""
        damaged: list[tuple[str, int]] = []
        after, last = among
        sql = f"{_SELECT} WHERE rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?"
        while page := self._db.rows(sql, (after, last, PAGE_ROWS)):
            after = page[-1]["number"]
            damaged += [(str(row["id"]), row["number"]) for row in page if not _is_whole(row)]
        why = "checksum or size does not match"
        return [Fault("damaged_entry", name, why, table="entries", number=number) for name, number in damaged]

    def vectors(self, scope: str) -> Iterator[tuple[str, tuple[str, str, str, str], bytes]]:
        """(id, (fingerprint, context_key, params_key, embedder), embedding) of a scope, for the index."""
        # In the order of the index on (scope, request_key), so that a page costs a page and not the whole scope.
        sql = (
            "SELECT id, fingerprint, context_key, params_key, embedder, embedding, request_key, rowid AS number "
            "FROM entries WHERE scope = ? AND (request_key, rowid) > (?, ?) ORDER BY request_key, rowid LIMIT ?"
        )
        after: tuple[str, int] = ("", -1)
        while page := self._db.rows(sql, (scope, *after, PAGE_ROWS)):
            before, after = after, (page[-1]["request_key"], page[-1]["number"])
            if after == before:  # text that is none is read as another one, which may sort before itself
                return
            for row in page:
                if row["embedding"] is None or row["embedder"] is None or not isinstance(row["id"], str):
                    continue
                yield (
                    row["id"],
                    (row["fingerprint"], row["context_key"], row["params_key"], row["embedder"]),
                    row["embedding"],
                )


def where_owner(
    *, scopes: Sequence[str] | None, user: str | None, namespace: str | None
) -> tuple[str, tuple[Any, ...]]:
    """A WHERE clause over `scope` and `user`; None leaves a dimension open. A scope ends in `#` and its namespace."""
    clauses: list[str] = ["1"]
    params: list[Any] = []
    if scopes is not None:
        clauses.append("scope IN (SELECT value FROM json_each(?))")
        params.append(json.dumps(list(scopes)))
    if user is not None:
        clauses.append("user = ?")
        params.append(user)
    if namespace is not None:
        clauses.append("substr(scope, -length(?)) = ?")
        params += [f"#{namespace}", f"#{namespace}"]
    return " AND ".join(clauses), tuple(params)


def is_owners(scope: str, by: str, *, scopes: Sequence[str] | None, user: str | None, namespace: str | None) -> bool:
    """What the clause of `where_owner` says about one scope and user."""
    return (
        (scopes is None or scope in scopes)
        and (user is None or by == user)
        and (namespace is None or scope.endswith(f"#{namespace}"))
    )
