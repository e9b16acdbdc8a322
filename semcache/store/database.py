"""One SQLite connection behind one lock. Knows no table; `migrations.py` does."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

# Nobody else has a reason to write here, so a lock that lasts longer than a statement is somebody's mistake.
LOCK_WAIT_S = 0.1
# Rows per transaction of what may be long: a look-up waits a few milliseconds for the lock and not for all of it.
BATCH_ROWS = 64
CORRUPT_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REFUSED_PAGE = re.compile(r"unable to get the page\. error code=(\d+)")

# What became of the owner before: it closed the folder, it did not get to that, or it left a database that is damaged.
LastRun = Literal["clean", "killed", "damaged"]
Params = Sequence[Any] | Mapping[str, Any]
Item = TypeVar("Item")


class Database:
    """Reads and transactions for all threads; `lock` is re-entrant and also orders renames and unlinks with commits.

    Another process may lock the file (a backup, a shell). Reads never wait for it. Of the writes one waits
    `LOCK_WAIT_S`, the others fail at once until the lock is gone: who waits holds `lock`, which all others need.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.is_corrupt = False
        self.is_open = True
        self._waited_in_vain = False
        self._looking = threading.Lock()  # taken before `lock`
        # SQLite gives the -wal and -shm files the mode of the database, so creating it 0600 makes all three private.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self.connection = sqlite3.connect(
            path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        self.connection.row_factory = sqlite3.Row
        # A damaged text must reach its checksum instead of failing every query that meets it.
        self.connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        try:
            with self.watching():
                self._configure(durable=durable)
            self._wait_at_most(0)
        except sqlite3.Error:
            self.connection.close()
            raise

    def _configure(self, *, durable: bool) -> None:
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {'FULL' if durable else 'NORMAL'}",
            "foreign_keys = ON",
            "secure_delete = ON",  # a forgotten prompt must not survive in a free page
            "temp_store = MEMORY",
            "cache_size = -16000",  # KiB
        ):
            self.connection.execute(f"PRAGMA {pragma}")

    def rows(self, sql: str, params: Params = ()) -> list[sqlite3.Row]:
        with self.lock, self.watching():
            return self.connection.execute(sql, params).fetchall()

    def row(self, sql: str, params: Params = ()) -> sqlite3.Row | None:
        with self.lock, self.watching():
            found: sqlite3.Row | None = self.connection.execute(sql, params).fetchone()
            return found

    def number(self, sql: str, params: Params = ()) -> int:
        """The single number that a query yields; NULL is 0, and so is what damage made of one."""
        row = self.row(sql, params)
        try:
            return int(row[0] or 0) if row is not None else 0
        except (OverflowError, ValueError):
            return 0

    @contextmanager
    def transaction(self, *, waits: bool = True) -> Iterator[sqlite3.Connection]:
        """All or nothing; committed when the block ends, never nested.

        Without `waits` it fails at once where another process has the file locked: for what may as well not happen.
        """
        with self.lock, self.watching():
            with self.patience(waits=waits):
                self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def patience(self, *, waits: bool) -> Iterator[None]:
        """Let a statement wait for another process's lock, unless one did so in vain since it was last free."""
        waits = waits and not self._waited_in_vain
        if waits:
            self._wait_at_most(LOCK_WAIT_S)
        try:
            yield
            self._waited_in_vain = False
        except sqlite3.OperationalError as error:
            self._waited_in_vain = self._waited_in_vain or (waits and _is_lock(error))
            raise
        finally:
            if waits:
                self._wait_at_most(0)

    def _wait_at_most(self, seconds: float) -> None:
        self.connection.execute(f"PRAGMA busy_timeout = {round(1e3 * seconds)}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Remember that SQLite called the file corrupt, so that the next start looks at all of it."""
        try:
            yield
        except UnicodeDecodeError as error:
            # Python cannot read SQLite's message, because it quotes a schema that is no text any more.
            self.is_corrupt = True
            raise corruption(f"the schema is damaged: {error}") from error
        except sqlite3.DatabaseError as error:
            self.is_corrupt = self.is_corrupt or is_corruption(error)
            raise

    def find_damage(self, *, thorough: bool) -> str | None:
        """What SQLite finds wrong with the file, None for nothing; `thorough` also compares indexes with tables.

        It reads every page, which may take minutes, on a connection of its own: nobody waits but who deletes. Where the
        machine refuses that (no memory, no descriptor, a bad sector) it raises: nothing is known of the file then.
        """
        pragma = "integrity_check" if thorough else "quick_check"
        self.require_open()
        try:
            with self._looking, self.watching(), closing(self._second_connection()) as connection:
                found = [str(row[0]) for row in connection.execute(f"PRAGMA {pragma}(10)").fetchall()]
        except sqlite3.Error as error:
            if not is_corruption(error):
                raise
            found = [str(error)]
        for line in found:
            require_read(line)
        return None if found == ["ok"] else "; ".join(found)

    def _second_connection(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_S, isolation_level=None)
        connection.text_factory = self.connection.text_factory
        return connection

    def rebuild_indexes(self) -> None:
        """Make every index anew from its table; a table whose rows break an index's rule is corrupt."""
        try:
            with self.lock, self.patience(waits=True):
                self.rows("REINDEX")
        except sqlite3.IntegrityError as error:
            raise corruption(str(error)) from error

    def truncate_log(self) -> None:
        """Move everything into the database file and empty the write-ahead log, so that deleted text is in neither."""
        # A look at every page keeps the log from being emptied.
        with self._looking, self.lock, self.patience(waits=True):
            if self.number("PRAGMA wal_checkpoint(TRUNCATE)"):
                error = sqlite3.OperationalError("another process uses the database, so its log still holds old text")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error

    def require_open(self) -> None:
        """Raise what SQLite raises after `close`: then the folder belongs to somebody else."""
        if not self.is_open:
            raise sqlite3.ProgrammingError("the store is closed")

    def close(self) -> None:
        with self.lock:
            self.is_open = False
            self.connection.close()


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), BATCH_ROWS):
        yield items[first : first + BATCH_ROWS]


def corruption(what: str) -> sqlite3.DatabaseError:
    """The error that SQLite raises for a corrupt file, for what only we can see."""
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def require_read(line: str) -> None:
    """Raise where a line of SQLite's check is about a page that the machine did not let it read."""
    refused = _REFUSED_PAGE.search(line)
    if refused is not None and int(refused[1]) & 0xFF not in CORRUPT_CODES:
        error = sqlite3.OperationalError(line)
        error.sqlite_errorcode = int(refused[1])
        raise error


def is_corruption(error: sqlite3.Error) -> bool:
    return _primary_code(error) in CORRUPT_CODES


def _is_lock(error: sqlite3.Error) -> bool:
    return _primary_code(error) == sqlite3.SQLITE_BUSY


def _primary_code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
