"""Another process may lock the database: what can wait does so once, and a look-up never."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from semcache.errors import StoreError
from semcache.store.database import LOCK_WAIT_S
from semcache.store.store import DATABASE_NAME, Store

from .conftest import OpenStore
from .samples import ALICE, NO_RAM, alias, chain, entry, put_chain, same, span, tail, tail_of


@contextmanager
def locked(data_dir: Path, sql: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """What a shell or a backup tool does for as long as it likes."""
    with closing(sqlite3.connect(data_dir / DATABASE_NAME, isolation_level=None)) as other:
        other.execute(sql)
        other.execute("SELECT count(*) FROM blocks").fetchall()
        yield
        other.execute("ROLLBACK")


@contextmanager
def waits(store: Store) -> Iterator[list[str]]:
    """Every statement that lets the following ones wait for a lock; at the end none may any more."""
    seen: list[str] = []
    before = "PRAGMA busy_timeout = "

    def note(statement: str) -> None:
        if statement.startswith(before) and statement != f"{before}0":
            seen.append(statement)

    store._db.connection.set_trace_callback(note)
    try:
        yield seen
    finally:
        store._db.connection.set_trace_callback(None)
    assert store._db.number("PRAGMA busy_timeout") == 0


@pytest.fixture
def filled(open_store: OpenStore) -> Store:
    store = open_store()
    put_chain(store, chain(3))
    store.put_tail(tail_of(chain(3)), tail(), ALICE)
    store.put_entry(entry(1))
    store.aliases.put(alias(1))
    return store


def look_up(store: Store) -> None:
    """All that a request asks for before the engine sees it."""
    assert len(store.load_prefix(chain(3))) == 3
    assert store.load_prompt([], tail_of(chain(3))).record is not None
    assert len(store.find_exact(ALICE.scope, "req1")) == 1
    assert store.aliases.find(ALICE.scope, "alias1") is not None
    store.touch_entry(entry(1).id)


def test_a_look_up_never_waits_and_its_uses_stay_uncounted(filled: Store, data_dir: Path) -> None:
    with locked(data_dir), waits(filled) as waited:
        for _ in range(3):
            look_up(filled)
        assert waited == []
    assert filled.counters()["write_failures"] == 3 * 4  # blocks, tail, alias, entry
    assert filled.list_entries()[0].hits == 0
    look_up(filled)
    assert filled.list_entries()[0].hits == 1


def test_blocks_read_from_disk_are_served_under_a_lock(open_store: OpenStore, filled: Store, data_dir: Path) -> None:
    store = open_store(NO_RAM)
    with locked(data_dir), waits(store) as waited:
        assert all(same(got, span(seed=at)) for at, got in enumerate(store.load_prefix(chain(3))))
        assert waited == []


def test_writes_wait_once_for_one_lock(filled: Store, data_dir: Path) -> None:
    for _ in range(2):
        with locked(data_dir), waits(filled) as waited:
            assert not filled.put_entry(entry(2))
            assert not filled.put_block(chain(1, start=50)[0], span(), ALICE)
            with pytest.raises(StoreError, match="locked"):
                filled.clear()
            look_up(filled)
            assert waited == [f"PRAGMA busy_timeout = {round(1e3 * LOCK_WAIT_S)}"]
        assert filled.put_entry(entry(3))  # the next lock is another one
    assert LOCK_WAIT_S <= 0.1


def test_a_touch_that_found_a_lock_leaves_the_waiting_to_others(filled: Store, data_dir: Path) -> None:
    with locked(data_dir), waits(filled) as waited:
        look_up(filled)
        assert not filled.put_entry(entry(2))
        assert len(waited) == 1


def test_deleted_text_that_a_reader_keeps_in_the_log_is_told(filled: Store, data_dir: Path) -> None:
    with locked(data_dir, "BEGIN"), pytest.raises(StoreError, match="log still holds old text; try again"):
        filled.clear()
    assert filled.list_entries() == []
    assert filled.clear() == (0, 0)
    assert (data_dir / f"{DATABASE_NAME}-wal").stat().st_size == 0


def test_a_look_at_every_page_keeps_nobody_waiting(filled: Store) -> None:
    db = filled._db
    with db.lock, ThreadPoolExecutor(1) as pool:  # as if somebody wrote all the time
        assert pool.submit(db.find_damage, thorough=True).result(timeout=30) is None
    filled.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        db.find_damage(thorough=True)
