"""A database that refuses for a while: to change anything, or all that concerns some of its tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from semcache.store.store import Store

_TOUCHES = (sqlite3.SQLITE_READ, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)


@contextmanager
def unwritable(store: Store) -> Iterator[None]:
    """As on a full disk: what is stored can be read."""
    store._db.connection.execute("PRAGMA query_only = 1")
    yield
    store._db.connection.execute("PRAGMA query_only = 0")


@contextmanager
def out_of_reach(store: Store, *tables: str) -> Iterator[None]:
    """As with bad sectors below them: these tables can neither be read nor changed, all others can."""

    def may(action: int, table: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if action in _TOUCHES and table in tables else sqlite3.SQLITE_OK

    store._db.connection.set_authorizer(may)
    yield
    store._db.connection.set_authorizer(None)
