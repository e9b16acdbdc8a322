"""Opens the database however the last run ended: looks at it as closely as that asks, and puts a corrupt one aside."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from semcache.errors import StoreError
from semcache.store.database import Database, LastRun, corruption, is_corruption
from semcache.store.datadir import DataDir
from semcache.store.migrations import migrate

# Below this a look at every page costs less than the rest of a start.
SMALL_DATABASE_BYTES = 64 << 20

Built = TypeVar("Built")


def open_with(
    folder: DataDir, name: str, build: Callable[[Database], Built], *, durable: bool
) -> tuple[Built, str | None]:
    """What `build` makes of the migrated database, and a warning when a corrupt one had to be put aside for it.

    StoreError where the database cannot be opened; then, as where `build` fails, the folder is given back.
    """
    path = folder.path / name

    def attempt(state: LastRun) -> tuple[Built, str | None]:
        with ExitStack() as undo:
            db, warning = _open_or_replace(path, durable=durable, state=state)
            undo.callback(db.close)
            built = build(db)
            undo.pop_all()
        return built, warning

    with ExitStack() as undo:
        undo.callback(folder.release, "damaged" if folder.last_run == "damaged" else "killed")
        try:
            try:
                result = attempt(folder.last_run)
            except sqlite3.Error as error:
                if not is_corruption(error):
                    raise
                result = attempt("damaged")  # too large to be looked through before it was used
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open {path}: {error}; check the disk and its permissions") from error
        undo.pop_all()
    return result


def _open_or_replace(path: Path, *, durable: bool, state: LastRun) -> tuple[Database, str | None]:
    try:
        return _open(path, durable=durable, state=state), None
    except sqlite3.Error as error:
        if not is_corruption(error):
            raise
        aside = _put_aside(path)
        warning = f"the database was corrupt ({error}); it is kept as {aside.name} and a new one was started"
        return _open(path, durable=durable, state="clean"), warning


def _open(path: Path, *, durable: bool, state: LastRun) -> Database:
    db = Database(path, durable=durable)
    try:
        if state != "clean" or path.stat().st_size <= SMALL_DATABASE_BYTES:
            found = db.find_damage(thorough=state == "damaged")
            if found is not None and state == "damaged":
                db.rebuild_indexes()  # perhaps no more than that is wrong
                found = db.find_damage(thorough=True)
            if found is not None:
                raise corruption(found)
        with db.watching(), db.patience(waits=True):
            migrate(db.connection)
    except BaseException:
        db.close()
        raise
    return db


def _put_aside(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):  # they belong to the old file and would damage the new one
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def put_aside_before(path: Path) -> Iterator[Path]:
    """The corrupt databases that were put aside in place of this one, with their logs."""
    return path.parent.glob(f"{path.name}.corrupt-*")
