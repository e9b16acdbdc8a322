"""A database of an older semcache is brought up to date with everything in it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlite_utils

from semcache.store.migrations import KNOWN, SCHEMA
from semcache.store.pins import PromptStored
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, alias, chain, decision, entry, evidence, usage_record


def test_every_migration_is_known() -> None:
    with sqlite3.connect(":memory:") as connection:
        db = sqlite_utils.Database(connection, execute_plugins=False)
        SCHEMA.apply(db)
        assert tuple(migration.name for migration in SCHEMA.applied(db)) == KNOWN
    connection.close()


@pytest.mark.parametrize("first_missing", KNOWN[4:])
def test_an_older_database_keeps_its_answers(
    store: Store, open_store: OpenStore, data_dir: Path, first_missing: str
) -> None:
    store.put_entry(entry(1))
    store.close()
    path = data_dir / "semcache.db"
    old = data_dir / "old.db"
    connection = sqlite3.connect(old)
    SCHEMA.apply(sqlite_utils.Database(connection, execute_plugins=False), stop_before=first_missing)
    connection.execute("ATTACH ? AS new", (str(path),))
    connection.execute("INSERT INTO entries SELECT * FROM new.entries")
    connection.commit()
    connection.close()
    old.replace(path)
    again = open_store()
    assert again.warnings == []
    assert again.find_exact(ALICE.scope, "req1")[0].answer == entry(1).answer
    assert again.aliases.put(alias(1))
    assert again.evidence.save_evidence(ALICE.scope, "{}", [evidence(1)])
    assert again.decisions.record([decision(1)])
    assert again.pin_entry(entry(1).id)
    assert again.prompt_stored(entry(1).id) is None  # the blocks of its prompt were never noted
    assert again.put_entry(entry(2), [key.hash for key in chain(1)])
    assert again.pin_entry(entry(2).id)
    assert again.prompt_stored(entry(2).id) == PromptStored(1, 0, 0)
    assert again.delete_entries([entry(1).id]) == 1
    assert again.aliases.find(ALICE.scope, "alias1") is None
    assert again.evidence.load_evidence(ALICE.scope).entries == ()
    assert again.decisions.recent()[0].matched_prompt is None
    assert again.check().problems == ()


def test_an_older_history_keeps_all_but_what_was_told_of_others(
    store: Store, open_store: OpenStore, data_dir: Path
) -> None:
    store.close()
    path = data_dir / "semcache.db"
    path.unlink()
    receipts = ['{"id": "req_0", "explain": [{"prompt": "of another"}]}', '{"id": "req_1"}', "{", b"\xff"]
    connection = sqlite3.connect(path)
    SCHEMA.apply(sqlite_utils.Database(connection, execute_plugins=False), stop_before="0012_newest")
    connection.executemany(
        "INSERT INTO requests (id, at, user, model, state, prompt, answer, receipt) "
        "VALUES (?, 1.0, 'os:1', 'mini', 'finished', 'q', 'a', ?)",
        [(f"req_{number}", receipt) for number, receipt in enumerate(receipts)],
    )
    connection.commit()
    connection.close()
    again = open_store()
    again.record_request(usage_record(4))
    assert again.warnings == []
    assert {row.id: row.receipt for row in again.recent_requests()} == {
        "req_0": {"id": "req_0"}, "req_1": {"id": "req_1"}, "req_2": {}, "req_3": {}, "req_4": usage_record(4).receipt,
    }  # fmt: skip
