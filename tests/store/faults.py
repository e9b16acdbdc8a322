"""What can happen to a data directory at rest; each kind takes random numbers and does it once."""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from semcache.store.limits import StoreLimits
from semcache.store.store import DATABASE_NAME, Store

from .samples import Clock, entry, file_bytes, span, tail
from .world import files_of

TABLES = (
    "blocks", "entries", "prompt_blocks", "aliases", "scope_evidence", "entry_evidence", "negatives",
    "negative_copies", "decisions", "requests", "usage",
)  # fmt: skip

HUGE_BYTES = 1 << 40  # more than any machine has memory for; on disk it takes no room

AtRest = Callable[[random.Random, Path], None]


# Files at rest


def _change(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def _flip(rng: random.Random, content: bytearray, first: int = 0, last: int | None = None) -> None:
    content[rng.randrange(first, len(content) if last is None else last)] ^= 1 << rng.randrange(8)


def _files(data_dir: Path) -> list[Path]:
    """What can still be read and changed: of two faults the first may have left a pipe or a terabyte."""
    return [path for path in files_of(data_dir) if path.is_file() and path.stat().st_size < HUGE_BYTES]


def _a_file(rng: random.Random, data_dir: Path) -> Path:
    return rng.choice(_files(data_dir))


def flip_length(rng: random.Random, data_dir: Path) -> None:
    _change(_a_file(rng, data_dir), lambda content: _flip(rng, content, 0, 8))


def flip_header(rng: random.Random, data_dir: Path) -> None:
    _change(_a_file(rng, data_dir), lambda content: _flip(rng, content, 8, 8 + int.from_bytes(content[:8], "little")))


def flip_numbers(rng: random.Random, data_dir: Path) -> None:
    _change(_a_file(rng, data_dir), lambda content: _flip(rng, content, 8 + int.from_bytes(content[:8], "little")))


def cut_file(rng: random.Random, data_dir: Path) -> None:
    path = _a_file(rng, data_dir)
    os.truncate(path, rng.randrange(path.stat().st_size))


def lengthen_file(rng: random.Random, data_dir: Path) -> None:
    _change(_a_file(rng, data_dir), lambda content: content.extend(rng.randbytes(rng.randint(1, 200))))


def grow_file(rng: random.Random, data_dir: Path) -> None:
    os.truncate(_a_file(rng, data_dir), HUGE_BYTES)


def zero_part(rng: random.Random, data_dir: Path) -> None:
    def zero(content: bytearray) -> None:
        first = rng.randrange(len(content) - 64)
        content[first : first + 64] = bytes(64)

    _change(_a_file(rng, data_dir), zero)


def swap_files(rng: random.Random, data_dir: Path) -> None:
    one, other = rng.sample(_files(data_dir), 2)
    left, right = one.read_bytes(), other.read_bytes()
    one.write_bytes(right)
    other.write_bytes(left)


def stale_file(rng: random.Random, data_dir: Path) -> None:
    """A whole file of the right shape and size, but of other numbers: an older life of the same name."""
    path = _a_file(rng, data_dir)
    seed = rng.randrange(1000, 2000)
    path.write_bytes(file_bytes(tail(seed=seed) if ".tail." in path.name else span(seed=seed)))


def lose_file(rng: random.Random, data_dir: Path) -> None:
    _a_file(rng, data_dir).unlink()


def no_file(rng: random.Random, data_dir: Path) -> None:
    """A folder, a pipe, or a link to nowhere or to another block, where a file should be."""
    path = _a_file(rng, data_dir)
    other = _a_file(rng, data_dir)
    path.unlink()
    kind = rng.randrange(4)
    if kind == 0:
        path.mkdir()
    elif kind == 3:
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == 1 else other)


def plant_files(rng: random.Random, data_dir: Path) -> None:
    name = f"{rng.randbytes(32).hex()}{rng.choice(('', '.tail'))}.safetensors{rng.choice(('', '.77-1.tmp'))}"
    _a_file(rng, data_dir).with_name(name).write_bytes(rng.randbytes(rng.randrange(100)))
    shutil.copy(_a_file(rng, data_dir), _a_file(rng, data_dir).with_name(f"{rng.randbytes(32).hex()}.safetensors"))


# The database at rest


def _other(rng: random.Random, value: object) -> object:
    """The value with one bit changed, or of another type."""
    if rng.randrange(5) == 0:
        return rng.choice([b"\xff\x00", "text", 7, -1, 1e300, ""])
    if isinstance(value, bytes | str) and value:
        content = bytearray(value if isinstance(value, bytes) else value.encode())
        _flip(rng, content)
        # As text with bytes that are none, as a flipped page would hold it.
        return bytes(content) if isinstance(value, bytes) else content.decode(errors="replace")
    if isinstance(value, int):
        return value ^ 1 << rng.randrange(40)
    if isinstance(value, float):
        return value + rng.choice([1.0, -1e9, 1e-3, math.inf])
    return rng.choice([0, "x", b"\x01"])


def change_row(rng: random.Random, data_dir: Path) -> None:
    """One value of one row of any table."""
    with contextlib.closing(sqlite3.connect(data_dir / DATABASE_NAME, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.row_factory = sqlite3.Row
        while True:
            table = rng.choice(TABLES)
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            row = rng.choice(rows)
            column = rng.choice(row.keys())
            where = " AND ".join(f'"{name}" IS ?' for name in row.keys())  # noqa: SIM118 - a Row yields values
            try:
                sql = f'UPDATE {table} SET "{column}" = ? WHERE {where}'
                connection.execute(sql, (_other(rng, row[column]), *tuple(row)))
            except sqlite3.Error:
                continue  # a key of another row, or no integer for a rowid
            return


def spoil_id(rng: random.Random, data_dir: Path) -> None:
    """The id of an answer is bytes, or text with a byte that is none."""
    spoilt = rng.choice(["CAST(id AS BLOB)", "CAST(x'ff' || substr(id, 2) AS TEXT)"])
    with contextlib.closing(sqlite3.connect(data_dir / DATABASE_NAME, isolation_level=None)) as connection:
        (number,) = rng.choice(connection.execute("SELECT rowid FROM entries").fetchall())
        connection.execute(f"UPDATE entries SET id = {spoilt} WHERE rowid = ?", (number,))


def swap_values(rng: random.Random, data_dir: Path) -> None:
    """Two rows of one table exchange what they hold in one column, which is not the same."""
    column, table = rng.choice([
        ("answer", "entries"), ("prompt", "entries"), ("embedding", "entries"), ("answer_tokens", "entries"),
        ("request_key", "entries"), ("checksum", "entries"), ("token_ids", "blocks"), ("checksum", "blocks"),
        ("parent", "blocks"), ("entry_id", "aliases"), ("request_key", "aliases"), ("num_same", "entry_evidence"),
        ("matched_prompt", "decisions"), ("entry_id", "decisions"),
    ])  # fmt: skip
    with contextlib.closing(sqlite3.connect(data_dir / DATABASE_NAME, isolation_level=None)) as connection:
        key = {"blocks": "hash"}.get(table, "rowid")
        rows = connection.execute(f"SELECT {key}, {column} FROM {table}").fetchall()
        one, left = rng.choice(rows)
        other, right = rng.choice([row for row in rows if row[1] != left])
        for value, at in (("for a moment", one), (left, other), (right, one)):  # the column may have to be unique
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (value, at))


def flip_database(rng: random.Random, data_dir: Path) -> None:
    def flip(content: bytearray) -> None:
        for _ in range(rng.choice([1, 1, 1, 8, 64])):
            _flip(rng, content)

    _change(data_dir / DATABASE_NAME, flip)


def spoil_page(rng: random.Random, data_dir: Path) -> None:
    def spoil(content: bytearray) -> None:
        first = rng.randrange(len(content) // 4096) * 4096
        content[first : first + 4096] = rng.choice([bytes(4096), rng.randbytes(4096)])

    _change(data_dir / DATABASE_NAME, spoil)


def cut_database(rng: random.Random, data_dir: Path) -> None:
    path = data_dir / DATABASE_NAME
    os.truncate(path, rng.randrange(path.stat().st_size))


def stray_log(rng: random.Random, data_dir: Path) -> None:
    """A write-ahead log that belongs to no database of ours."""
    (data_dir / f"{DATABASE_NAME}-wal").write_bytes(rng.randbytes(rng.choice([0, 20, 5000])))


def foreign_log(rng: random.Random, data_dir: Path) -> None:
    """The write-ahead log of another store, all of it or its last part: to SQLite it is that of ours."""
    with tempfile.TemporaryDirectory() as folder:
        other = Store.open(Path(folder), StoreLimits(0, 1 << 24), clock=Clock())
        try:
            for is_last in (False, True):
                for number in range(rng.randint(1, 30)):
                    other.put_entry(entry(100 + number, scope="user:os:9/eve", user="os:9/eve"))
                if not is_last and rng.random() < 0.5:
                    other._db.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copy(Path(folder) / f"{DATABASE_NAME}-wal", data_dir)
        finally:
            other.close()


AT_FILES: dict[str, AtRest] = {
    kind.__name__: kind
    for kind in (
        flip_length, flip_header, flip_numbers, cut_file, lengthen_file, grow_file, zero_part, swap_files, stale_file,
        lose_file, no_file, plant_files,
    )
}  # fmt: skip
AT_REST: dict[str, AtRest] = AT_FILES | {
    kind.__name__: kind
    for kind in (change_row, spoil_id, swap_values, flip_database, spoil_page, cut_database, stray_log, foreign_log)
}

# After these something must be missing, and somebody must have said so.
ALWAYS_SEEN = {
    "flip_length", "flip_header", "flip_numbers", "cut_file", "lengthen_file", "grow_file", "swap_files", "stale_file",
    "lose_file",
}  # fmt: skip

# With one row its chain is gone, or its entry as an answer, a neighbour, what two aliases lead to, and its evidence.
MOST_LOST = {"change_row": 5, "spoil_id": 5, "swap_values": 10, "stray_log": 0}
