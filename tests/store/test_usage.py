"""History rows and sums: both or neither, per user."""

from __future__ import annotations

from pathlib import Path

import pytest

from semcache.store import usage
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, BOB, alias, chain, entry, put_chain, usage_record
from .test_entries import edit
from .test_erasure import home_contains


def test_sums_by_user_and_in_total(store: Store) -> None:
    for number, outcome in enumerate(("miss", "exact", "exact", "draft")):
        store.record_request(usage_record(number, outcome=outcome, drafted_tokens=2, accepted_tokens=1))
    store.record_request(usage_record(9, user=BOB.user, outcome=None, state="failed", error="engine_error: x", at=5.0))
    put_chain(store, chain(2), BOB)
    store.put_entry(entry(1))
    report = store.usage()
    alice, bob = report.users
    assert (alice.user, alice.requests, alice.errors) == (ALICE.user, 4, 0)
    assert alice.outcomes == {"exact": 2, "semantic": 0, "draft": 1, "prefix": 0, "miss": 1}
    assert (alice.prompt_tokens, alice.cached_tokens, alice.completion_tokens) == (40, 16, 24)
    assert (alice.drafted_tokens, alice.accepted_tokens, alice.saved_ms) == (8, 4, 6.0)
    assert (alice.first_seen, alice.last_seen) == (1_000_000.0, 1_000_003.0)
    assert alice.disk_bytes == entry(1).size_bytes
    assert (bob.requests, bob.errors, sum(bob.outcomes.values())) == (1, 1, 0)
    assert bob.ram_bytes > 0
    assert report.total.requests == 5
    assert report.total.disk_bytes == alice.disk_bytes + bob.disk_bytes == store.tier_status()["disk"].used_bytes
    assert (report.total.first_seen, report.total.last_seen) == (5.0, 1_000_003.0)


def test_history_newest_first_and_by_user(store: Store, open_store: OpenStore) -> None:
    for number in range(5):
        store.record_request(usage_record(number, user=ALICE.user if number % 2 else BOB.user, prompt="\ud800?"))
    again = open_store()
    assert [row.id for row in again.recent_requests(3)] == ["req_4", "req_3", "req_2"]
    assert [row.id for row in again.recent_requests(principal=ALICE.user)] == ["req_3", "req_1"]
    row = again.recent_requests(1)[0]
    assert row.receipt == {"id": "req_4", "usage": {"total_tokens": 3}}
    assert row.prompt == "??"
    assert again.recent_requests(principal="nobody") == []


@pytest.mark.parametrize(
    "change",
    [
        *("user = 'os:2/alice'", "id = 'req_3'", "at = 7.0", "prompt = 'quession'", "answer = x'00'"),
        *(
            "scope = 'global'",
            "receipt = replace(receipt, 'total', 'totam')",
            "receipt = CAST(x'ff' AS TEXT)",
            "checksum = ''",
        ),
    ],
)
def test_a_damaged_history_row_is_shown_to_nobody(store: Store, data_dir: Path, change: str) -> None:
    """With one bit it may be another user's row."""
    for number in (1, 2):
        store.record_request(usage_record(number))
    edit(data_dir, f"UPDATE requests SET {change} WHERE id = 'req_1'")
    assert [row.id for row in (*store.recent_requests(), *store.recent_requests(principal="os:2"))] == ["req_2"]
    assert store.counters()["damaged_history"] == 1
    assert [row.id for row in store.recent_requests()] == ["req_2"]
    assert store.counters()["damaged_history"] == 1
    assert store.usage().total.requests == 2


def test_damaged_history_leaves_with_a_check_or_whoever_is_forgotten(store: Store, data_dir: Path) -> None:
    for number in range(4):
        store.record_request(usage_record(number, user=BOB.user, prompt=f"PLANTED-SECRET {number}"))
    edit(data_dir, "UPDATE requests SET user = 'os:2/bob' WHERE id = 'req_1'")
    problems = store.check(fix=True).problems
    assert [(problem.kind, problem.item) for problem in problems] == [("damaged_history", "req_1")]
    assert store.check().problems == ()
    edit(data_dir, "UPDATE requests SET user = 'os:2/bob' WHERE id = 'req_2'")
    store.forget_user(BOB.user)
    assert home_contains(data_dir, "PLANTED-SECRET") == []


def test_a_request_counts_once(store: Store) -> None:
    store.record_request(usage_record(1))
    store.record_request(usage_record(1))
    assert store.usage().total.requests == 1
    assert store.counters()["write_failures"] == 1


def test_history_is_bounded_and_sums_are_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_HISTORY_ROWS", 3)
    for number in range(8):
        store.record_request(usage_record(number))
    assert [row.id for row in store.recent_requests()] == ["req_7", "req_6", "req_5"]
    assert store.usage().total.requests == 8


def test_history_is_bounded_in_bytes_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_HISTORY_BYTES", 3_000)
    texts = [("ü" * 300, "a" * 300), ("q" * 600, "a" * 300), ("q" * 300, "a" * 600)]
    for number in range(8):
        prompt, answer = texts[number % 3]
        store.record_request(usage_record(number, prompt=prompt, answer=answer, receipt={}))
    # 902 bytes each: the fourth ends 2,706 bytes before the newest does, the one before it more than the limit.
    assert [row.id for row in store.recent_requests()] == ["req_7", "req_6", "req_5", "req_4"]
    store.record_request(usage_record(8, prompt="q" * 9_000, receipt={}))
    assert [row.id for row in store.recent_requests()] == ["req_8"]
    store.record_request(usage_record(9))
    assert [row.id for row in store.recent_requests()] == ["req_9", "req_8"]
    assert store.usage().total.requests == 10


def test_users_are_all_who_asked_or_stored(store: Store) -> None:
    store.record_request(usage_record(1, user="asked"))
    for number, user in enumerate(("b", "a", "b", "c")):
        store.put_entry(entry(number, user=user))
    store.aliases.put(alias(1, user="worded"))
    put_chain(store, chain(2), BOB)
    assert store.users() == sorted(["asked", "a", "b", "c", "worded", BOB.user])
    store.delete_entries([entry(3).id])
    assert "c" not in store.users()


def test_an_empty_store_has_no_users(store: Store) -> None:
    assert store.users() == []
    report = store.usage()
    assert (report.users, report.total.requests, report.total.first_seen) == ((), 0, None)
