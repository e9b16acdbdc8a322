"""What can happen to the machine under a running store; each kind lasts as long as its context."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from semcache.store.files import Files
from semcache.store.store import Store

from .faults import AT_FILES, TABLES, change_row
from .samples import Clock

CODES = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE)


class Killed(BaseException):
    """What the process would not live to see."""


class Machine(Files):
    """The real file system, until it is told to fail or to die at one of its steps, which are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: dict[str, int] = {}  # call to errno
        self.num_steps = 0
        self.dies_at: int | None = None
        self.dies_after = False  # the last step still happens
        self.part = 0.5  # of a file that gets onto a full disk
        self.is_dead = False
        self.at_death: Callable[[], object] = lambda: None

    def watch(self, connection: sqlite3.Connection) -> None:
        """Count the statements of transactions as steps too; the process dies before one."""

        def statement(_: str) -> None:
            if connection.in_transaction and self._is_last():
                self._die()

        connection.set_trace_callback(statement)

    def _is_last(self) -> bool:
        self.num_steps += not self.is_dead
        return self.num_steps == self.dies_at and not self.is_dead

    def _die(self) -> None:
        self.is_dead = True
        self.at_death()

    def _step(self, call: str, do: Callable[[], object], before_failing: Callable[[], object] | None = None) -> None:
        if self._is_last():
            with contextlib.suppress(OSError):
                if self.dies_after:
                    do()
                elif before_failing is not None:
                    before_failing()
            self._die()
        if self.is_dead:
            raise Killed
        if call in self.codes:
            if before_failing is not None:
                before_failing()
            raise OSError(self.codes[call], os.strerror(self.codes[call]))
        do()

    def _write(self, path: Path, pieces: Sequence[bytes | memoryview], *, durable: bool) -> None:
        content = b"".join(pieces)

        def write(num_bytes: int) -> None:
            super(Machine, self)._write(path, [content[:num_bytes]], durable=durable)

        self._step("write", lambda: write(len(content)), lambda: write(int(self.part * len(content))))

    def publish(self, temp: Path, path: Path, *, durable: bool) -> None:
        self._step("publish", lambda: super(Machine, self).publish(temp, path, durable=durable))

    def unlink(self, path: Path) -> None:
        self._step("unlink", lambda: super(Machine, self).unlink(path))

    def discard_temp(self, temp: Path) -> None:
        if not self.is_dead:
            super().discard_temp(temp)

    def read(self, path: Path, size_bytes: int) -> bytearray:
        if "read" in self.codes:
            raise OSError(self.codes["read"], os.strerror(self.codes["read"]))
        return super().read(path, size_bytes)


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
    for kind in rng.sample(list(AT_FILES), 2):
        with contextlib.suppress(OSError, ValueError):  # the first may have left nothing for the second
            AT_FILES[kind](rng, store._folder.path)
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
