"""Logs that keep their newest rows: at most so many, and about so many bytes.

Each row says how many bytes had been written when it was (`end_bytes`), so what is too old follows from an index and no
sum has to be kept. Rows that were deleted in between count as if they were there.
"""

from __future__ import annotations

import sqlite3

from semcache.store.database import BATCH_ROWS


def end_bytes(table: str) -> str:
    """The column's value for a new row of `:size_bytes`, as SQL."""
    return f"(SELECT coalesce(max(end_bytes), 0) FROM {table}) + :size_bytes"  # noqa: S608 - one of our own tables


def size_of(*texts: str | None) -> int:
    """Bytes of a row's texts: all of it that can become large."""
    return sum(len(text.encode()) for text in texts if text is not None)


def drop_oldest(connection: sqlite3.Connection, table: str, *, max_rows: int, max_bytes: int) -> None:
    """Call it after every insert; bytes leave a batch of rows at a time, so that no request waits for all of them."""
    connection.execute(
        f"DELETE FROM {table} WHERE number <= (SELECT max(number) FROM {table}) - ?",  # noqa: S608
        (max_rows,),
    )
    connection.execute(
        f"DELETE FROM {table} WHERE number IN (SELECT number FROM {table} "  # noqa: S608
        f"WHERE end_bytes <= (SELECT max(end_bytes) FROM {table}) - ? ORDER BY end_bytes LIMIT {BATCH_ROWS})",
        (max_bytes,),
    )
