"""The database schema as ordered changes. A change that was released is never edited; a new one is appended."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import sqlite_utils
from sqlite_utils.migrations import Migrations

from semcache.errors import StoreError
from semcache.store.database import Database, is_corruption

# Below this a look at every page costs less than the rest of a start.
SMALL_DATABASE_BYTES = 64 << 20

SCHEMA = Migrations("semcache.store")


def _blocks(db: sqlite_utils.Database) -> None:
    db.execute("""
        CREATE TABLE blocks (
            hash TEXT PRIMARY KEY,
            kind TEXT NOT NULL CHECK (kind IN ('block', 'tail')),
            scope TEXT NOT NULL,
            model TEXT NOT NULL,           -- folder below kv/
            fingerprint TEXT NOT NULL,
            parent TEXT,                   -- hash of the block before this one; it may be gone
            first_token INTEGER NOT NULL,  -- position in the prompt
            num_tokens INTEGER NOT NULL,
            token_ids BLOB NOT NULL,       -- int32, little endian
            size_bytes INTEGER NOT NULL,   -- of the file
            checksum TEXT NOT NULL,        -- xxh3-128 of the whole file
            user TEXT NOT NULL,            -- who wrote it first
            created_at REAL NOT NULL,
            last_used_at REAL NOT NULL,
            hits INTEGER NOT NULL DEFAULT 0,
            compute_ms REAL NOT NULL DEFAULT 0
        ) WITHOUT ROWID""")
    db.execute("CREATE INDEX blocks_parent ON blocks (parent)")
    db.execute("CREATE INDEX blocks_scope ON blocks (scope)")
    db.execute("CREATE INDEX blocks_user ON blocks (user, size_bytes)")
    db.execute("CREATE INDEX blocks_last_used ON blocks (last_used_at)")


def _entries(db: sqlite_utils.Database) -> None:
    db.execute("""
        CREATE TABLE entries (
            id TEXT PRIMARY KEY,
            scope TEXT NOT NULL,
            model TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            user TEXT NOT NULL,
            strategy TEXT NOT NULL,
            context_key TEXT NOT NULL,
            params_key TEXT NOT NULL,
            request_key TEXT NOT NULL,
            prompt TEXT NOT NULL,          -- last user message
            messages TEXT NOT NULL,        -- JSON
            sampling TEXT NOT NULL,        -- JSON
            answer TEXT NOT NULL,
            answer_tokens BLOB NOT NULL,   -- int32, little endian
            finish_reason TEXT NOT NULL,
            num_prompt_tokens INTEGER NOT NULL,
            num_completion_tokens INTEGER NOT NULL,
            embedding BLOB,                -- float32, little endian
            embedder TEXT,
            created_at REAL NOT NULL,
            last_used_at REAL NOT NULL,
            expires_at REAL,
            hits INTEGER NOT NULL DEFAULT 0,
            pinned INTEGER NOT NULL DEFAULT 0,
            compute_ms REAL NOT NULL DEFAULT 0,
            size_bytes INTEGER NOT NULL,   -- approximate, for the disk budget
            checksum TEXT NOT NULL
        )""")
    db.execute("CREATE INDEX entries_request ON entries (scope, request_key)")
    db.execute("CREATE INDEX entries_partition ON entries (scope, fingerprint, context_key, params_key)")
    db.execute("CREATE INDEX entries_last_used ON entries (last_used_at)")
    db.execute("CREATE INDEX entries_user ON entries (user, size_bytes)")
    db.execute("CREATE INDEX entries_expires ON entries (expires_at) WHERE expires_at IS NOT NULL")


def _requests(db: sqlite_utils.Database) -> None:
    db.execute("""
        CREATE TABLE requests (
            number INTEGER PRIMARY KEY,    -- grows by one, so the oldest rows are the smallest numbers
            id TEXT NOT NULL UNIQUE,
            at REAL NOT NULL,
            user TEXT NOT NULL,
            model TEXT NOT NULL,
            outcome TEXT,
            reason TEXT,
            strategy TEXT,
            scope TEXT,
            state TEXT NOT NULL,
            error TEXT,
            prompt TEXT NOT NULL,
            answer TEXT NOT NULL,
            receipt TEXT NOT NULL          -- JSON, the whole AskReceipt
        )""")
    db.execute("CREATE INDEX requests_user ON requests (user, number)")


def _usage(db: sqlite_utils.Database) -> None:
    counters = (
        "requests", "errors", "exact", "semantic", "draft", "prefix", "miss",
        "prompt_tokens", "cached_tokens", "completion_tokens", "drafted_tokens", "accepted_tokens",
    )  # fmt: skip
    columns = "".join(f"{name} INTEGER NOT NULL DEFAULT 0, " for name in counters)
    db.execute(
        f"CREATE TABLE usage (user TEXT PRIMARY KEY, {columns}"
        "saved_ms REAL NOT NULL DEFAULT 0, first_seen REAL NOT NULL, last_seen REAL NOT NULL) WITHOUT ROWID"
    )


# Called, not used as decorators: sqlite-utils' decorator is untyped.
SCHEMA(name="0001_blocks")(_blocks)
SCHEMA(name="0002_entries")(_entries)
SCHEMA(name="0003_requests")(_requests)
SCHEMA(name="0004_usage")(_usage)

KNOWN = ("0001_blocks", "0002_entries", "0003_requests", "0004_usage")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database to the newest schema; refuses one that a newer semcache made."""
    db = sqlite_utils.Database(connection, execute_plugins=False)
    unknown = sorted({migration.name for migration in SCHEMA.applied(db)} - set(KNOWN))
    if unknown:
        raise StoreError(
            f"the database was made by a newer semcache (it has {', '.join(unknown)}); "
            "upgrade semcache, or set SEMCACHE_HOME to another folder"
        )
    SCHEMA.apply(db)


def open_database(path: Path, *, durable: bool, was_clean: bool) -> tuple[Database, str | None]:
    """The migrated database, and a warning when a corrupt one had to be put aside for it."""
    try:
        return _open(path, durable=durable, was_clean=was_clean), None
    except sqlite3.Error as error:
        if not is_corruption(error):
            raise
        aside = _put_aside(path)
        warning = f"the database was corrupt ({error}); it is kept as {aside.name} and a new one was started"
        return _open(path, durable=durable, was_clean=True), warning


def _open(path: Path, *, durable: bool, was_clean: bool) -> Database:
    db = Database(path, durable=durable)
    try:
        if not was_clean or path.stat().st_size <= SMALL_DATABASE_BYTES:
            found = db.quick_check()
            if found != "ok":
                error = sqlite3.DatabaseError(found)
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error
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
