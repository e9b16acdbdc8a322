"""What a KV block is called and the rows that say which blocks exist. Files are `disk.py`'s business.

A block's name is a SHA-256 chain over everything that decides its numbers, so equal prefixes share blocks and nothing
else can. Token ids are kept beside the hash and compared: a hash is never trusted alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from semcache.errors import StoreError
from semcache.store.database import Database, Params
from semcache.store.rows import number, oldest_live

Kind = Literal["block", "tail"]

# Rows read at once: other threads get the lock in between.
PAGE_ROWS = 4096

_TOKEN_BYTES = 4
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BlockKey:
    """Identity of the KV of `token_ids` at positions from `first_token` on, after everything in `parent`."""

    hash: str
    parent: str | None
    first_token: int
    token_ids: tuple[int, ...]
    kind: Kind = "block"


@dataclass(frozen=True)
class Continuation:
    """What a prompt goes on with behind `parent`: tokens at positions from `first_token` on, however many."""

    root: str
    parent: str
    first_token: int
    token_ids: tuple[int, ...]

    def num_shared(self, token_ids: Sequence[int]) -> int:
        """How many leading tokens these have in common with the prompt."""
        pairs = zip(self.token_ids, token_ids, strict=False)
        return next(
            (i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(self.token_ids), len(token_ids))
        )


def block_chain(root: str, token_ids: Sequence[int], block_tokens: int, *, parent: str | None = None) -> list[BlockKey]:
    """Keys of all full blocks of a prompt; `root` is what scope, namespace, model and numerics hash to.

    The first block is a child of `parent`.
    """
    chain: list[BlockKey] = []
    for first in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        key = _key(root, parent, first, tuple(token_ids[first : first + block_tokens]), "block")
        chain.append(key)
        parent = key.hash
    return chain


def tail_key(root: str, parent: str | None, first_token: int, token_ids: Sequence[int]) -> BlockKey:
    """Key of the full-prompt record: the tokens after the last full block (maybe none) and the prompt's logits."""
    return _key(root, parent, first_token, tuple(token_ids), "tail")


def short_key(root: str, parent: str | None, first_token: int, token_ids: Sequence[int]) -> BlockKey:
    """Key of a block with fewer tokens than the others: the end of what was computed. Nothing is its child."""
    return _key(root, parent, first_token, tuple(token_ids), "block")


def _key(root: str, parent: str | None, first_token: int, token_ids: tuple[int, ...], kind: Kind) -> BlockKey:
    # JSON separates the fields without ambiguity; the tokens follow it and have a fixed width.
    head = json.dumps(["semcache.block/1", root, parent, kind, first_token]).encode()
    digest = hashlib.sha256(head + b"\n" + pack_tokens(token_ids)).hexdigest()
    return BlockKey(digest, parent, first_token, token_ids, kind)


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    return np.asarray(token_ids, dtype="<i4").tobytes()


@dataclass(frozen=True)
class Owner:
    """Who a block is written for. `model` names a folder, so it is checked here once."""

    scope: str
    user: str
    model: str
    fingerprint: str

    def __post_init__(self) -> None:
        if not _FOLDER_NAME.fullmatch(self.model):
            raise StoreError(
                f"model name {self.model!r} is not safe as a folder; use letters, digits, '.', '_' and '-'"
            )


@dataclass(frozen=True)
class BlockRow:
    """One row of `blocks`."""

    hash: str
    kind: Kind
    scope: str
    model: str
    fingerprint: str
    parent: str | None
    first_token: int
    num_tokens: int
    token_ids: bytes
    size_bytes: int
    checksum: str
    user: str
    created_at: float
    last_used_at: float
    hits: int = 0
    compute_ms: float = 0.0

    @property
    def relative_path(self) -> str | None:
        """Where the file lies below `kv/`; None when a damaged row names no safe place."""
        if not (_FOLDER_NAME.fullmatch(str(self.model)) and _HASH.fullmatch(str(self.hash))):
            return None
        return _path(self.model, self.hash, self.kind)

    def matches(self, key: BlockKey) -> bool:
        """Whether this row is about exactly the tokens of `key`, not only about the same hash."""
        return (
            self.kind == key.kind
            and self.parent == key.parent
            and self.first_token == key.first_token
            and self.num_tokens == len(key.token_ids)
            and self.token_ids == pack_tokens(key.token_ids)
        )


def key_of(root: str, row: BlockRow) -> BlockKey | None:
    """The key that gives a row its name; None where its columns are not what was hashed."""
    content = row.token_ids
    if not isinstance(content, bytes) or len(content) % _TOKEN_BYTES:
        return None
    try:
        key = _key(root, row.parent, row.first_token, tuple(np.frombuffer(content, "<i4").tolist()), row.kind)
    except TypeError:  # a damaged column that JSON cannot hold
        return None
    return key if key.hash == row.hash else None


def _path(model: str, hash_: str, kind: str) -> str:
    return f"{model}/{hash_[:2]}/{hash_}{'.tail' if kind == 'tail' else ''}.safetensors"


_COLUMNS = tuple(item.name for item in fields(BlockRow))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM blocks"  # noqa: S608 - column names of our own dataclass
_INSERT = f"INSERT OR REPLACE INTO blocks ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608

# Not past the TTL, or pinned; SQLite looks at pins only where a row is past it.
_LIVE = "(created_at > ? OR hash IN (SELECT hash FROM pinned_blocks))"


def _names(hashes: Iterable[str]) -> str:
    """For json_each; a damaged name that is no text is nobody's."""
    return json.dumps([hash_ for hash_ in hashes if isinstance(hash_, str)])


def _from_row(row: sqlite3.Row) -> BlockRow:
    """No checksum covers these three, and everybody calculates with them: damage there is 0 and fails no request."""
    values: dict[str, Any] = dict(row)
    values |= {name: int(number(row[name])) for name in ("size_bytes", "hits")}
    return BlockRow(**values | {"compute_ms": number(row["compute_ms"])})


class Blocks:
    """The `blocks` table."""

    def __init__(self, db: Database, ttl_s: float) -> None:
        self._db = db
        self._ttl_s = ttl_s

    def find(self, hashes: Iterable[str], now_s: float) -> dict[str, BlockRow]:
        """The rows of these hashes that exist and are pinned or not past the TTL."""
        where = f"hash IN (SELECT value FROM json_each(?)) AND {_LIVE}"  # noqa: S608 - our own clause
        params = (json.dumps(list(hashes)), oldest_live(now_s, self._ttl_s))
        return {row.hash: row for row in self.select(where, params)}

    def around(self, parent: str, token_ids: Sequence[int], now_s: float) -> list[BlockRow]:
        """The live children of `parent` next to these tokens in the order of their bytes, on either side.

        In a sorted list no other item has more leading bytes in common than one of these two.
        """
        params = (parent, pack_tokens(token_ids), oldest_live(now_s, self._ttl_s))
        sides = (("<=", "DESC"), (">", "ASC"))
        where = f"parent = ? AND token_ids {{}} ? AND {_LIVE} ORDER BY token_ids {{}} LIMIT 1"
        return [row for side in sides for row in self.select(where.format(*side), params)]

    def uses(self, user: str | None = None) -> Iterator[sqlite3.Row]:
        """How every block, or every one of a user's, was used and whose child it is, without its tokens."""
        # In the order of an index, so that a page costs a page: the primary key, or the one on (user, size_bytes).
        columns = "hash, parent, first_token, size_bytes, created_at, last_used_at, hits, compute_ms"
        mine, order, whose, after = "hash > ?", ["hash"], list[str](), list[Any]([""])
        if user is not None:
            mine, order = "user = ? AND (size_bytes, hash) > (?, ?)", ["size_bytes", "hash"]
            whose, after = [user], [-(1 << 63), ""]
        sql = f"SELECT {columns} FROM blocks WHERE {mine} ORDER BY {', '.join(order)} LIMIT ?"  # noqa: S608
        while page := self._db.rows(sql, (*whose, *after, PAGE_ROWS)):
            before, after = after, [page[-1][name] for name in order]
            if after == before:  # text that is none is read as another one, which may sort before itself
                return
            yield from page

    def num_children(self, hashes: Sequence[str]) -> Counter[str]:
        """Of how many blocks each of these is the parent."""
        children: Counter[str] = Counter()
        sql = "SELECT parent, count(*) FROM blocks WHERE parent IN (SELECT value FROM json_each(?)) GROUP BY parent"
        for first in range(0, len(hashes), PAGE_ROWS):
            rows = self._db.rows(sql, (_names(hashes[first : first + PAGE_ROWS]),))
            children.update({row[0]: row[1] for row in rows})
        return children

    def paths(self) -> set[str]:
        """Where the files of all rows lie; of a damaged row it may be a place where no file can be."""
        return {_path(*row) for row in self._db.rows("SELECT model, hash, kind FROM blocks")}

    def last_sizes(self, num: int) -> list[int]:
        """File sizes of the blocks that were used last, the newest first."""
        sql = "SELECT size_bytes FROM blocks ORDER BY last_used_at DESC LIMIT ?"
        return [size for (size,) in self._db.rows(sql, (num,)) if isinstance(size, int) and size >= 0]

    def all(self) -> list[BlockRow]:
        return [_from_row(row) for row in self._db.rows(_SELECT)]

    def select(self, where: str, params: Params) -> list[BlockRow]:
        return [_from_row(row) for row in self._db.rows(f"{_SELECT} WHERE {where}", params)]

    def by_hashes(self, hashes: Sequence[str]) -> list[BlockRow]:
        """Rows whatever their age."""
        return self.select("hash IN (SELECT value FROM json_each(?))", (_names(hashes),))

    def insert(self, connection: sqlite3.Connection, row: BlockRow) -> None:
        connection.execute(_INSERT, tuple(getattr(row, name) for name in _COLUMNS))

    def touch(self, rows: Sequence[BlockRow], now_s: float) -> set[str]:
        """Count a use of each row; returns the hashes of those that are still the rows that were read."""
        read = {row.hash: row.checksum for row in rows}
        with self._db.transaction(waits=False) as connection:
            found = connection.execute(
                "UPDATE blocks SET hits = hits + 1, last_used_at = max(last_used_at, ?) "
                "WHERE hash IN (SELECT value FROM json_each(?)) RETURNING hash, checksum",
                (now_s, json.dumps(list(read))),
            ).fetchall()
        return {row["hash"] for row in found if read[row["hash"]] == row["checksum"]}

    def delete(self, connection: sqlite3.Connection, rows: Sequence[BlockRow]) -> list[BlockRow]:
        """Delete rows that are still the ones that were read; returns what was deleted."""
        return [
            row
            for row in rows
            if connection.execute(
                "DELETE FROM blocks WHERE hash = ? AND checksum = ?", (row.hash, row.checksum)
            ).rowcount
        ]
