"""What tables have in common: a checksum over what never changes in a row, text that SQLite can hold, and faults."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

# Rowids above the first one, up to the second.
Rowids = tuple[int, int]
ALL_ROWS: Rowids = (-(1 << 63), (1 << 63) - 1)

_YEAR_9999_S = 253_370_764_800.0


@dataclass(frozen=True)
class Fault:
    """A row that does not fit and can only be deleted. `item` is what it is about: an entry id or a scope."""

    kind: str
    item: str
    detail: str
    table: str
    number: int  # its rowid


def checksum(row: Mapping[str, Any] | sqlite3.Row, names: Iterable[str]) -> str:
    """xxh3-128 over these columns as stored, each with its type and length."""
    digest = xxhash.xxh3_128()
    for name in names:
        value = row[name]
        content = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(f"{name}:{type(value).__name__}:{len(content)};".encode())
        digest.update(content)
    return digest.hexdigest()


def drop_damaged(connection: sqlite3.Connection, table: str, rowid: int, names: Sequence[str]) -> bool:
    """Delete a row whose checksum does not match, within a transaction; False where there is none there any more.

    Of a damaged row the rowid is all that is certain, and SQLite gives that of one that is gone to a new one.
    """
    row = connection.execute(f"SELECT * FROM {table} WHERE rowid = ?", (rowid,)).fetchone()  # noqa: S608 - our own table
    if row is None or row["checksum"] == checksum(row, names):
        return False
    connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))  # noqa: S608 - our own table
    return True


def number(value: object) -> float:
    """The number in a column that no checksum covers; 0 for what a damaged row holds instead."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def time_s(value: object) -> float:
    """The same for seconds since the epoch: no calendar has a date for most numbers."""
    seconds = number(value)
    return seconds if 0 <= seconds < _YEAR_9999_S else 0.0


def oldest_live(now_s: float, ttl_s: float) -> float:
    """What was made at this time or before has expired; a TTL of 0 is none."""
    return now_s - ttl_s if ttl_s > 0 else -math.inf


def with_utf8(text: str) -> str:
    """The text with a question mark for what has no UTF-8 (lone surrogates); for rows that people look at."""
    return text.encode(errors="replace").decode()
