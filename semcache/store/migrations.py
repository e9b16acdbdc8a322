"""The database schema as ordered changes. A change that was released is never edited; a new one is appended."""

from __future__ import annotations

import contextlib
import sqlite3
from functools import cache

import sqlite_utils
from sqlite_utils.migrations import Migrations

from semcache.errors import StoreError
from semcache.store.database import corruption
from semcache.store.rows import checksum

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


def _aliases(db: sqlite_utils.Database) -> None:
    db.execute("""
        CREATE TABLE aliases (
            number INTEGER PRIMARY KEY,
            scope TEXT NOT NULL,
            request_key TEXT NOT NULL,
            entry_id TEXT NOT NULL REFERENCES entries (id) ON DELETE CASCADE,
            prompt TEXT NOT NULL,          -- the other wording
            user TEXT NOT NULL,            -- whose wording it is
            created_at REAL NOT NULL,
            last_used_at REAL NOT NULL,
            hits INTEGER NOT NULL DEFAULT 0,
            size_bytes INTEGER NOT NULL,   -- approximate, for the disk budget
            checksum TEXT NOT NULL,
            UNIQUE (scope, request_key)
        )""")
    db.execute("CREATE INDEX aliases_entry ON aliases (entry_id)")
    db.execute("CREATE INDEX aliases_user ON aliases (user, size_bytes)")
    db.execute("""
        CREATE VIEW stored_bytes AS
            SELECT user, size_bytes FROM blocks
            UNION ALL SELECT user, size_bytes FROM entries
            UNION ALL SELECT user, size_bytes FROM aliases""")


def _evidence(db: sqlite_utils.Database) -> None:
    db.execute("""
        CREATE TABLE scope_evidence (
            scope TEXT PRIMARY KEY,
            state TEXT NOT NULL,           -- the policy's own
            checksum TEXT NOT NULL,
            updated_at REAL NOT NULL
        )""")
    db.execute("""
        CREATE TABLE entry_evidence (
            entry_id TEXT PRIMARY KEY REFERENCES entries (id) ON DELETE CASCADE,
            scope TEXT NOT NULL,
            num_same INTEGER NOT NULL,
            num_other INTEGER NOT NULL,
            "offset" REAL NOT NULL,
            precision REAL NOT NULL,
            num_regrets INTEGER NOT NULL,
            mean_regret REAL NOT NULL,     -- nats
            checksum TEXT NOT NULL
        )""")
    db.execute("CREATE INDEX entry_evidence_scope ON entry_evidence (scope)")
    db.execute("""
        CREATE TABLE negatives (
            number INTEGER PRIMARY KEY,    -- grows by one, so the oldest rows are the smallest numbers
            scope TEXT NOT NULL,
            pair_key TEXT NOT NULL,
            at REAL NOT NULL,
            UNIQUE (scope, pair_key)
        )""")
    db.execute("CREATE INDEX negatives_age ON negatives (scope, number)")


def _decisions(db: sqlite_utils.Database) -> None:
    db.execute("""
        CREATE TABLE decisions (
            number INTEGER PRIMARY KEY,    -- grows by one, so the oldest rows are the smallest numbers
            request_id TEXT NOT NULL,
            at REAL NOT NULL,
            scope TEXT NOT NULL,
            user TEXT NOT NULL,            -- who asked
            entry_id TEXT NOT NULL,        -- it may be gone
            prompt TEXT NOT NULL,          -- as asked
            matched_prompt TEXT,           -- of the entry; gone with it
            score REAL NOT NULL,           -- cosine
            p_correct REAL,
            served INTEGER NOT NULL,
            audit INTEGER NOT NULL,
            audited_at REAL,
            label INTEGER CHECK (label IN (0, 1)),
            source TEXT CHECK (source IN ('draft', 'equivalence', 'audit', 'user')),
            reason TEXT NOT NULL,
            features TEXT NOT NULL,        -- JSON
            UNIQUE (request_id, entry_id)
        )""")
    db.execute("CREATE INDEX decisions_user ON decisions (user, scope)")
    db.execute("""
        CREATE INDEX decisions_due ON decisions (number)
            WHERE served = 1 AND audit = 1 AND audited_at IS NULL AND label IS NULL""")
    db.execute("""
        CREATE INDEX decisions_judged ON decisions (user, scope, label)
            WHERE served = 1 AND source IN ('audit', 'user')""")
    # An entry's prompt may be another user's: it must not outlive the entry here.
    db.execute("CREATE INDEX decisions_entry ON decisions (entry_id) WHERE matched_prompt IS NOT NULL")
    db.execute("""
        CREATE TRIGGER decisions_forget AFTER DELETE ON entries BEGIN
            UPDATE decisions SET matched_prompt = NULL WHERE entry_id = OLD.id AND matched_prompt IS NOT NULL;
        END""")


def _openings(db: sqlite_utils.Database) -> None:
    # 12 bytes are the first three tokens: how `openings.py` finds answers that begin alike.
    db.execute("CREATE INDEX entries_opening ON entries (scope, fingerprint, substr(answer_tokens, 1, 12))")


def _children(db: sqlite_utils.Database) -> None:
    # Sorted by tokens, so that the child that shares most leading tokens with a prompt is found in two steps.
    db.execute("DROP INDEX blocks_parent")
    db.execute("CREATE INDEX blocks_children ON blocks (parent, token_ids)")


def _pins(db: sqlite_utils.Database) -> None:
    db.execute("""
        CREATE TABLE prompt_blocks (
            number INTEGER PRIMARY KEY,
            entry_id TEXT NOT NULL UNIQUE REFERENCES entries (id) ON DELETE CASCADE,
            hashes TEXT NOT NULL           -- JSON: the blocks of the entry's prompt; they may be gone, or yet to come
        )""")
    db.execute("CREATE INDEX entries_pinned ON entries (id) WHERE pinned = 1")
    # A damaged note names nothing: json_each would fail the whole query.
    db.execute("""
        CREATE VIEW pinned_blocks AS
            SELECT names.value AS hash, entries.user, entries.fingerprint
            FROM entries JOIN prompt_blocks ON prompt_blocks.entry_id = entries.id,
                json_each(CASE WHEN typeof(hashes) = 'text' AND json_valid(hashes) THEN hashes ELSE '[]' END) AS names
            WHERE entries.pinned = 1 AND names.type = 'text'""")


def _expiry(db: sqlite_utils.Database) -> None:
    # What is past the TTL is looked for again and again, and it is past the TTL of the day: `expires_at` is not used.
    db.execute("DROP INDEX entries_expires")
    db.execute("CREATE INDEX entries_created ON entries (created_at)")
    db.execute("CREATE INDEX blocks_created ON blocks (created_at)")


def _newest(db: sqlite_utils.Database) -> None:
    # Older rows have no size: they leave first, once as much was written as is kept.
    for table in ("requests", "decisions"):
        db.execute(f"ALTER TABLE {table} ADD COLUMN end_bytes INTEGER NOT NULL DEFAULT 0")
        db.execute(f"CREATE INDEX {table}_end ON {table} (end_bytes)")
    # Candidates are prompts and answers of others, which history must not keep beyond their entries.
    db.execute("""
        UPDATE requests SET receipt = json_remove(receipt, '$.explain')
            WHERE CASE WHEN typeof(receipt) = 'text' THEN json_valid(receipt) END""")


def _sorts(db: sqlite_utils.Database) -> None:
    # With those of the other orders: a list of entries reads as many rows as it shows.
    db.execute("CREATE INDEX entries_hits ON entries (hits, last_used_at)")
    db.execute("CREATE INDEX entries_size ON entries (size_bytes)")


def _copies(db: sqlite_utils.Database) -> None:
    # A lost pair is an answer that is served again although it was marked wrong; damage hits one of two.
    db.execute("""
        CREATE TABLE negative_copies (
            number INTEGER PRIMARY KEY,
            scope TEXT NOT NULL,
            pair_key TEXT NOT NULL,
            at REAL NOT NULL,
            UNIQUE (scope, pair_key)
        )""")
    db.execute("CREATE INDEX negative_copies_age ON negative_copies (scope, number)")
    db.execute("INSERT OR IGNORE INTO negative_copies SELECT number, scope, pair_key, at FROM negatives")


def _history(db: sqlite_utils.Database) -> None:
    names = (
        "id", "at", "user", "model", "outcome", "reason", "strategy", "scope", "state", "error", "prompt", "answer",
        "receipt",
    )  # fmt: skip
    db.execute("ALTER TABLE requests ADD COLUMN checksum TEXT NOT NULL DEFAULT ''")
    for (number,) in db.execute("SELECT number FROM requests").fetchall():
        row = db.execute(f"SELECT {', '.join(names)} FROM requests WHERE number = ?", (number,)).fetchone()  # noqa: S608
        value = checksum(dict(zip(names, row, strict=True)), names)
        db.execute("UPDATE requests SET checksum = ? WHERE number = ?", (value, number))


# Called, not used as decorators: sqlite-utils' decorator is untyped.
SCHEMA(name="0001_blocks")(_blocks)
SCHEMA(name="0002_entries")(_entries)
SCHEMA(name="0003_requests")(_requests)
SCHEMA(name="0004_usage")(_usage)
SCHEMA(name="0005_aliases")(_aliases)
SCHEMA(name="0006_evidence")(_evidence)
SCHEMA(name="0007_decisions")(_decisions)
SCHEMA(name="0008_openings")(_openings)
SCHEMA(name="0009_children")(_children)
SCHEMA(name="0010_pins")(_pins)
SCHEMA(name="0011_expiry")(_expiry)
SCHEMA(name="0012_newest")(_newest)
SCHEMA(name="0013_sorts")(_sorts)
SCHEMA(name="0014_copies")(_copies)
SCHEMA(name="0015_history")(_history)

KNOWN = (
    "0001_blocks", "0002_entries", "0003_requests", "0004_usage", "0005_aliases", "0006_evidence", "0007_decisions",
    "0008_openings", "0009_children", "0010_pins", "0011_expiry", "0012_newest", "0013_sorts",
    "0014_copies", "0015_history",
)  # fmt: skip


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database to the newest schema; refuses one that a newer semcache made."""
    db = sqlite_utils.Database(connection, execute_plugins=False)
    try:
        applied = {migration.name for migration in SCHEMA.applied(db)}
        unknown = sorted(applied - set(KNOWN))
        if unknown and applied.issuperset(KNOWN) and unknown[0] > max(KNOWN):
            raise StoreError(
                f"the database was made by a newer semcache (it has {', '.join(unknown)}); "
                "upgrade semcache, or set SEMCACHE_HOME to another folder"
            )
        if unknown:
            raise corruption(f"it names changes that never were: {', '.join(unknown)}")
        SCHEMA.apply(db)
    except sqlite3.OperationalError as error:
        # A change that cannot be made for want of a table, or because it is made already: not what its own list says.
        # A full disk, a lock or a missing permission have codes of their own.
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise corruption(f"its tables are not what its list of changes says: {error}") from error
    missing = sorted(name for _, name, _ in _objects_of_a_new_one() - _objects(connection))
    if missing:
        raise corruption(f"its schema is damaged: {', '.join(missing)}")


def _objects(connection: sqlite3.Connection) -> frozenset[tuple[str, str, str | None]]:
    """Tables, indexes, views and triggers with the text that made them, without those of the migrations themselves."""
    sql = "SELECT type, name, sql FROM sqlite_master WHERE tbl_name <> '_sqlite_migrations'"
    return frozenset((row[0], row[1], row[2]) for row in connection.execute(sql))


@cache
def _objects_of_a_new_one() -> frozenset[tuple[str, str, str | None]]:
    """What every database has after the newest change: a page that says otherwise passes SQLite's own checks."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        SCHEMA.apply(sqlite_utils.Database(connection, execute_plugins=False))
        return _objects(connection)
