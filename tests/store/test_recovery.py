"""A database that went bad is put aside and a new one started; one of a newer version is left alone."""

from __future__ import annotations

import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from semcache.errors import StoreError
from semcache.store.database import is_corruption, require_read
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, PLENTY, block_files, chain, entry, put_chain


@pytest.mark.parametrize("garbage", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_corrupt_database_is_put_aside_and_its_blocks_swept(
    store: Store, open_store: OpenStore, data_dir: Path, garbage: bytes
) -> None:
    put_chain(store, chain(2))
    store.close()
    (data_dir / "semcache.db").write_bytes(garbage)
    again = open_store()
    (warning,) = again.warnings
    (aside,) = data_dir.glob("semcache.db.corrupt-*")
    assert aside.name in warning
    assert aside.read_bytes() == garbage
    assert block_files(data_dir) == []
    assert again.put_entry(entry(1))
    put_chain(again, chain(2))
    assert again.check().ok


def test_a_log_is_put_aside_with_its_database_and_forgotten_with_it(
    store: Store, open_store: OpenStore, data_dir: Path
) -> None:
    store.put_entry(entry(1))
    store._db.truncate_log()
    store.touch_entry(entry(1).id)  # what changes is in the log, and the first page is not
    log = data_dir / "semcache.db-wal"
    with closing(sqlite3.connect(data_dir / "semcache.db")) as somebody:
        somebody.execute("SELECT * FROM entries").fetchall()  # who looks at it keeps SQLite from removing the log
        store.close()
        with open(data_dir / "semcache.db", "r+b") as database:
            database.write(b"\xa5" * 4096)
        written = log.read_bytes()
        again = open_store()
    (aside,) = data_dir.glob("semcache.db.corrupt-*[0-9]")
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == written != b""
    assert again.put_entry(entry(2))
    assert again.check().ok
    again.forget_user(ALICE.user)
    assert list(data_dir.glob("*corrupt*")) == []


def test_a_page_that_went_bad_is_found_at_the_next_start(store: Store, open_store: OpenStore, data_dir: Path) -> None:
    for number in range(200):
        store.put_entry(entry(number))
    store.close()
    path = data_dir / "semcache.db"
    content = bytearray(path.read_bytes())
    content[20 * 4096 : 24 * 4096] = b"\xa5" * (4 * 4096)
    path.write_bytes(content)
    again = open_store()
    assert len(again.warnings) == 1
    assert again.check().ok


def test_a_database_of_a_newer_version_is_left_alone(store: Store, data_dir: Path) -> None:
    store.close()
    connection = sqlite3.connect(data_dir / "semcache.db")
    connection.execute("INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('semcache.store', '9999_later')")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="newer semcache"):
        Store.open(data_dir, PLENTY)
    assert list(data_dir.glob("*corrupt*")) == []


def test_a_machine_without_file_descriptors_costs_nothing(store: Store, open_store: OpenStore, data_dir: Path) -> None:
    """Whichever file cannot be opened at a start: it is refused or served, and nothing is put aside or swept."""
    put_chain(store, chain(2))
    store.put_entry(entry(1))
    store.close()
    before = block_files(data_dir)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = 0
    for num_left in range(12):
        with open(data_dir / "highest", "wb") as highest:  # the next descriptor is the lowest that is free
            first = highest.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + num_left, limits[1]))
        try:
            Store.open(data_dir, PLENTY).close()
        except StoreError:
            refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert list(data_dir.glob("*corrupt*")) == []
        assert block_files(data_dir) == before
    assert 0 < refused < 12
    assert open_store().get_entry(entry(1).id) is not None


def test_what_the_machine_did_not_let_sqlite_read_is_no_damage() -> None:
    require_read("ok")
    require_read("Tree 4 page 7: unable to get the page. error code=11")
    require_read("row 3 missing from index entries_user")
    for code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR | 1 << 8, sqlite3.SQLITE_NOMEM):
        with pytest.raises(sqlite3.OperationalError) as error:
            require_read(f"Tree 4 page 7: unable to get the page. error code={code}")
        assert not is_corruption(error.value)
