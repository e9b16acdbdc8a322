"""Clearing and forgetting leave nothing behind, or say what stayed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from semcache.errors import StoreError
from semcache.store.blocks import Owner
from semcache.store.database import BATCH_ROWS
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import (
    ALICE,
    BOB,
    BrokenFiles,
    alias,
    block_files,
    chain,
    decision,
    entry,
    evidence,
    put_chain,
    usage_record,
    vector,
)


def home_contains(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_clear_lets_others_in_between(store: Store) -> None:
    num = 2 * BATCH_ROWS + 1
    for number in range(num):
        store.put_entry(entry(number))
    put_chain(store, chain(num))
    statements: list[str] = []
    store._db.connection.set_trace_callback(statements.append)
    assert store.clear() == (num, num)
    store._db.connection.set_trace_callback(None)
    assert statements.count("COMMIT") == 3 + 3 + 1
    assert store.tier_status()["ram"].items == 0


def test_clear_by_scope_user_and_namespace(store: Store) -> None:
    run = Owner(ALICE.scope + "#run1", ALICE.user, "mini", "fp1")
    put_chain(store, chain(2))
    put_chain(store, chain(2, start=100), BOB)
    put_chain(store, chain(2, start=200), run)
    store.put_entry(entry(1))
    store.put_entry(entry(2, scope=BOB.scope, user=BOB.user))
    store.put_entry(entry(3, scope=run.scope, pinned=True))
    assert store.clear(namespace="run") == (0, 0)
    assert store.clear(namespace="run1", user=BOB.user) == (0, 0)
    assert store.clear(namespace="run1") == (1, 2)
    assert store.clear(scopes=[BOB.scope]) == (1, 2)
    assert [e.id for e in store.list_entries()] == [entry(1).id]
    assert store.nearest(run.scope, vector(3), 5, None) == []
    assert store.clear() == (1, 2)


def test_forgetting_a_user_leaves_no_trace_on_disk(store: Store, data_dir: Path) -> None:
    secret, kept = "PLANTED-SECRET-7391", "ANOTHER-USERS-TEXT"
    (data_dir / "semcache.db.corrupt-20260101-000000").write_text(secret)
    for number in range(30):  # enough rows to span pages
        store.put_entry(entry(number, prompt=f"{secret} {number}", answer=secret * 50, messages=(("user", secret),)))
    store.put_entry(entry(99, user=BOB.user, scope=BOB.scope, prompt=kept))
    store.record_request(usage_record(1, prompt=secret, answer=secret, receipt={"prompt": secret}))
    store.record_request(usage_record(2, user=BOB.user, prompt=kept))
    put_chain(store, chain(2))
    # In a shared scope: an entry of each, asked for by the other in other words, and decisions about both.
    store.put_entry(entry(50, scope="global", prompt=secret))
    store.put_entry(entry(51, scope="global", user=BOB.user, prompt=kept))
    for number, prompt in ((50, secret), (51, kept)):
        seen = {"cache": {"entry": entry(number).id, "matched_prompt": prompt, "score": 0.9}}
        store.record_request(usage_record(number, user=BOB.user, receipt=seen))
    theirs = alias(50, "a1", scope="global", user=BOB.user, prompt=kept)
    mine = alias(51, "a2", scope="global", prompt=secret)
    assert [store.aliases.put(item) for item in (theirs, mine, alias(1, prompt=secret))] == [True] * 3
    about_mine = decision(50, scope="global", user=BOB.user, prompt=kept, matched_prompt=secret)
    by_me = decision(51, scope="global", prompt=secret, matched_prompt=kept, reason=secret)
    assert store.decisions.record([about_mine, by_me, decision(1, prompt=secret, matched_prompt=secret)])
    for scope in (ALICE.scope, f"{ALICE.scope}#run", "global"):
        assert store.evidence.save_evidence(scope, f"state of {scope}", [evidence(1), evidence(50), evidence(51)])
        assert store.evidence.add_negative(scope, f"pair in {scope}")
    assert home_contains(data_dir, secret)
    assert store.forget_user(ALICE.user) == (31, 2)
    assert home_contains(data_dir, secret) == []
    assert store.aliases.find("global", "a1") is None
    assert store.aliases.find("global", "a2") is None
    (left,) = store.decisions.recent()
    assert (left.prompt, left.matched_prompt, left.entry_id) == (kept, None, entry(50).id)
    shared = store.evidence.load_evidence("global")
    assert (shared.state, [item.entry_id for item in shared.entries]) == ("state of global", [entry(51).id])
    assert shared.negatives == {"pair in global"}
    assert home_contains(data_dir, ALICE.user) == []
    assert home_contains(data_dir, kept)
    assert {row.user for row in store.recent_requests()} == {BOB.user}
    assert [row.receipt["cache"]["matched_prompt"] for row in store.recent_requests(2)] == [kept, None]
    assert [user.user for user in store.usage().users] == [BOB.user]
    store.close()
    assert home_contains(data_dir, secret) == []


def test_a_deleted_answer_is_gone_from_the_file_too(store: Store, data_dir: Path) -> None:
    store.put_entry(entry(1, answer="PLANTED-SECRET-7391"))
    store.aliases.put(alias(1, prompt="PLANTED-SECRET-7391"))
    store.decisions.record([decision(1, matched_prompt="PLANTED-SECRET-7391")])
    told = {"cache": {"entry": entry(1).id, "matched_prompt": "PLANTED-SECRET-7391"}}
    store.record_request(usage_record(1, user=BOB.user, receipt=told))
    assert store.recent_requests()[0].receipt == told
    store.delete_entries([entry(1).id])
    assert home_contains(data_dir, "PLANTED-SECRET-7391") == []
    store.decisions.record([decision(2, entry_id=entry(1).id, matched_prompt="PLANTED-SECRET-7391")])
    store.record_request(usage_record(2, user=BOB.user, receipt=told))
    assert home_contains(data_dir, "PLANTED-SECRET-7391") == []


def test_what_others_were_told_of_a_cleared_prompt_goes_with_it(store: Store, data_dir: Path) -> None:
    secret, num = "PLANTED-SECRET-7391", 600  # a few pages of history
    store.put_entry(entry(1, scope="global", prompt=secret, messages=()))
    store.put_entry(entry(2, scope="global", user=BOB.user))
    for number in range(num):
        of = entry(1 + number % 2)
        told = {"cache": {"entry": of.id, "matched_prompt": secret if of.id == entry(1).id else "kept"}}
        store.record_request(usage_record(number, user=BOB.user, receipt=told))
    with store._db.transaction() as connection:
        for number, receipt in enumerate(("{", b"\xff", b"{}", "[]", "{} {}")):
            connection.execute("UPDATE requests SET receipt = ? WHERE id = ?", (receipt, f"req_{number}"))
    assert store.clear(user=ALICE.user) == (1, 0)
    assert home_contains(data_dir, secret) == []
    kept = [row.receipt["cache"]["matched_prompt"] for row in store.recent_requests(num) if "cache" in row.receipt]
    assert (kept.count(None), kept.count("kept")) == (num // 2 - 3, num // 2 - 2)


def test_who_clears_is_told_which_files_stayed_and_the_next_start_sweeps_them(
    open_store: OpenStore, data_dir: Path
) -> None:
    files = BrokenFiles()
    store = open_store(files=files)
    put_chain(store, chain(2))
    put_chain(store, chain(1, start=500), BOB)
    files.fail["unlink"] = errno.EACCES
    with pytest.raises(StoreError, match=rf"2 files .* {data_dir / 'kv'} .*check --fix") as raised:
        store.clear(user=ALICE.user)
    assert any(str(path) in raised.value.message for path in block_files(data_dir))
    assert store.missing(chain(2)) == chain(2)  # the rows are gone all the same
    assert store.tier_status()["ram"].items == 1
    assert store.counters()["unlink_failures"] == 2
    assert store.clear(user=ALICE.user) == (0, 0)
    assert len(block_files(data_dir)) == 3
    again = open_store()
    assert again.counters()["swept_files"] == 2
    assert len(block_files(data_dir)) == len(again.load_prefix(chain(1, start=500))) == 1


def test_a_block_that_was_stored_again_did_not_stay(open_store: OpenStore) -> None:
    store = open_store()
    put_chain(store, chain(2))
    rows = store._tiers.delete(store._blocks.all())
    put_chain(store, chain(1))
    assert store._tiers.disk.remaining(rows) == []


def test_what_an_eviction_could_not_remove_is_counted_only(open_store: OpenStore, data_dir: Path) -> None:
    files = BrokenFiles()
    store = open_store(StoreLimits(0, 3_000), files)
    files.fail["unlink"] = errno.EACCES
    put_chain(store, chain(9))
    assert store.counters()["evicted_blocks"] == store.counters()["unlink_failures"] > 0
    with pytest.raises(StoreError, match="files that may be of") as raised:
        store.forget_user(ALICE.user)
    assert str(data_dir / "kv") in raised.value.message
    assert len(block_files(data_dir)) == 9
    files.fail.clear()
    assert store.forget_user(ALICE.user) == (0, 0)  # all of it was evicted or forgotten before
    assert block_files(data_dir) == []


def test_a_database_put_aside_that_cannot_be_removed_is_told(open_store: OpenStore, data_dir: Path) -> None:
    files = BrokenFiles()
    store = open_store(files=files)
    aside = data_dir / "semcache.db.corrupt-20260101-000000"
    aside.write_text("what alice asked")
    store.record_request(usage_record(1))
    files.fail["unlink"] = errno.EACCES
    with pytest.raises(StoreError, match=aside.name):
        store.forget_user(ALICE.user)
    assert store.recent_requests() == []
    files.fail.clear()
    store.forget_user(ALICE.user)
    assert not aside.exists()
