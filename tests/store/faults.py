"""What can happen to a data directory and the machine under it; each kind takes random numbers and does it once."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from semcache.store.files import Files
from semcache.store.store import DATABASE_NAME, Store
from semcache.store.tensors import encode

from .samples import Clock, span, tail
from .world import files_of

CODES = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE)
TABLES = (
    "blocks", "entries", "aliases", "scope_evidence", "entry_evidence", "negatives", "decisions", "requests", "usage",
)  # fmt: skip

AtRest = Callable[[random.Random, Path], None]


# Files at rest


def _change(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def _flip(rng: random.Random, content: bytearray, first: int = 0, last: int | None = None) -> None:
    content[rng.randrange(first, len(content) if last is None else last)] ^= 1 << rng.randrange(8)


def _a_file(rng: random.Random, data_dir: Path) -> Path:
    return rng.choice(files_of(data_dir))


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


def zero_part(rng: random.Random, data_dir: Path) -> None:
    def zero(content: bytearray) -> None:
        first = rng.randrange(len(content) - 64)
        content[first : first + 64] = bytes(64)

    _change(_a_file(rng, data_dir), zero)


def swap_files(rng: random.Random, data_dir: Path) -> None:
    one, other = rng.sample(files_of(data_dir), 2)
    left, right = one.read_bytes(), other.read_bytes()
    one.write_bytes(right)
    other.write_bytes(left)


def stale_file(rng: random.Random, data_dir: Path) -> None:
    """A whole file of the right shape and size, but of other numbers: an older life of the same name."""
    path = _a_file(rng, data_dir)
    seed = rng.randrange(1000, 2000)
    path.write_bytes(encode(tail(seed=seed) if ".tail." in path.name else span(seed=seed)))


def lose_file(rng: random.Random, data_dir: Path) -> None:
    _a_file(rng, data_dir).unlink()


def no_file(rng: random.Random, data_dir: Path) -> None:
    """A folder, or a link to nowhere or to another block, where a file should be."""
    path = _a_file(rng, data_dir)
    other = _a_file(rng, data_dir)
    path.unlink()
    kind = rng.randrange(3)
    if kind == 0:
        path.mkdir()
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


def swap_values(rng: random.Random, data_dir: Path) -> None:
    """Two rows of one table exchange what they hold in one column."""
    column, table = rng.choice([
        ("answer", "entries"), ("prompt", "entries"), ("embedding", "entries"), ("answer_tokens", "entries"),
        ("request_key", "entries"), ("checksum", "entries"), ("token_ids", "blocks"), ("checksum", "blocks"),
        ("parent", "blocks"), ("entry_id", "aliases"), ("request_key", "aliases"), ("num_same", "entry_evidence"),
        ("matched_prompt", "decisions"), ("entry_id", "decisions"),
    ])  # fmt: skip
    with contextlib.closing(sqlite3.connect(data_dir / DATABASE_NAME, isolation_level=None)) as connection:
        key = {"blocks": "hash"}.get(table, "rowid")
        rows = connection.execute(f"SELECT {key}, {column} FROM {table}").fetchall()
        (one, left), (other, right) = rng.sample(rows, 2)
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (right, one))
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (left, other))


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


AT_REST: dict[str, AtRest] = {
    kind.__name__: kind
    for kind in (
        flip_length, flip_header, flip_numbers, cut_file, lengthen_file, zero_part, swap_files, stale_file, lose_file,
        no_file, plant_files, change_row, swap_values, flip_database, spoil_page, cut_database, stray_log,
    )
}  # fmt: skip

# After these something must be missing, and somebody must have said so.
ALWAYS_SEEN = {
    "flip_length", "flip_header", "flip_numbers", "cut_file", "lengthen_file", "swap_files", "stale_file", "lose_file",
}  # fmt: skip


# The machine under a running store


class Killed(BaseException):
    """What the process would not live to see."""


class Machine(Files):
    """The real file system, until it is told to fail or to die at its n-th step from now."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: dict[str, int] = {}  # call to errno
        self.left: int | None = None  # steps to live
        self.dies_after = False  # the last step still happens
        self.part = 0.5  # of a file that gets onto a full disk

    def _step(self, call: str, do: Callable[[], object], before_failing: Callable[[], object] | None = None) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed
            if self.left == 0:
                if self.dies_after:
                    do()
                elif before_failing is not None:
                    before_failing()
                raise Killed
        if call in self.codes:
            if before_failing is not None:
                before_failing()
            raise OSError(self.codes[call], os.strerror(self.codes[call]))
        do()

    def _write(self, path: Path, content: bytes | bytearray, *, durable: bool) -> None:
        def write(num_bytes: int) -> None:
            super(Machine, self)._write(path, bytes(content[:num_bytes]), durable=durable)

        self._step("write", lambda: write(len(content)), lambda: write(int(self.part * len(content))))

    def publish(self, temp: Path, path: Path, *, durable: bool) -> None:
        self._step("publish", lambda: super(Machine, self).publish(temp, path, durable=durable))

    def unlink(self, path: Path) -> None:
        self._step("unlink", lambda: super(Machine, self).unlink(path))

    def discard_temp(self, temp: Path) -> None:
        if self.left is None or self.left > 0:
            super().discard_temp(temp)

    def read(self, path: Path) -> bytearray:
        if "read" in self.codes:
            raise OSError(self.codes["read"], os.strerror(self.codes["read"]))
        return super().read(path)


Live = Callable[[random.Random, Store, Machine, Clock], contextlib.AbstractContextManager[None]]


@contextmanager
def refusing(rng: random.Random, store: Store, machine: Machine, clock: Clock) -> Iterator[None]:
    """Some file operations fail: full disk, no permission, broken drive, no file handles."""
    machine.part = rng.random()
    for call in rng.sample(["write", "publish", "read", "unlink"], rng.randint(1, 4)):
        machine.codes[call] = rng.choice(CODES)
    yield
    machine.codes.clear()


@contextmanager
def _pragma(store: Store, name: str, value: object) -> Iterator[None]:
    (before,) = store._db.connection.execute(f"PRAGMA {name}").fetchone()
    store._db.connection.execute(f"PRAGMA {name} = {value}")
    yield
    store._db.connection.execute(f"PRAGMA {name} = {before}")


@contextmanager
def read_only_database(rng: random.Random, store: Store, machine: Machine, clock: Clock) -> Iterator[None]:
    with _pragma(store, "query_only", 1):
        yield


@contextmanager
def full_database(rng: random.Random, store: Store, machine: Machine, clock: Clock) -> Iterator[None]:
    (num_pages,) = store._db.connection.execute("PRAGMA page_count").fetchone()
    with _pragma(store, "max_page_count", num_pages + rng.randrange(3)):
        yield


@contextmanager
def locked_database(rng: random.Random, store: Store, machine: Machine, clock: Clock) -> Iterator[None]:
    store._db.connection.execute("PRAGMA busy_timeout = 0")
    with contextlib.closing(sqlite3.connect(store._db.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def lost_table(rng: random.Random, store: Store, machine: Machine, clock: Clock) -> Iterator[None]:
    """A table that SQLite cannot find, as after damage to the schema; it comes back."""
    table = rng.choice(TABLES)
    store._db.connection.execute("PRAGMA legacy_alter_table = ON")
    store._db.connection.execute(f"ALTER TABLE {table} RENAME TO gone")
    yield
    store._db.connection.execute(f"ALTER TABLE gone RENAME TO {table}")
    store._db.connection.execute("PRAGMA legacy_alter_table = OFF")


@contextmanager
def clock_jump(rng: random.Random, store: Store, machine: Machine, clock: Clock) -> Iterator[None]:
    before = clock.now_s
    clock.now_s += rng.choice([1, -1]) * 10 ** rng.uniform(0, 10)
    yield
    clock.now_s = before


@contextmanager
def damage_under_way(rng: random.Random, store: Store, machine: Machine, clock: Clock) -> Iterator[None]:
    """Files are damaged while the store is open, perhaps while it holds them in RAM."""
    files = [kind for kind in AT_REST if kind not in ("change_row", "swap_values", "flip_database", "spoil_page",
                                                      "cut_database", "stray_log")]  # fmt: skip
    for kind in rng.sample(files, 2):
        with contextlib.suppress(OSError, ValueError):  # the first may have left nothing for the second
            AT_REST[kind](rng, store._folder.path)
    yield


@contextmanager
def rows_under_way(rng: random.Random, store: Store, machine: Machine, clock: Clock) -> Iterator[None]:
    change_row(rng, store._folder.path)
    yield


LIVE: dict[str, Live] = {
    kind.__name__: kind
    for kind in (
        refusing, read_only_database, full_database, locked_database, lost_table, clock_jump, damage_under_way,
        rows_under_way,
    )
}  # fmt: skip
