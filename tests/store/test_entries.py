"""Stored answers come back whole or not at all."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from semcache.errors import UsageError
from semcache.store.entries import SORTS, new_entry_id, pack_vector, row_checksum
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, BOB, PLENTY, Clock, chain, entry, put_chain, vector


def edit(data_dir: Path, sql: str, *params: object) -> None:
    """Change a row behind the store's back."""
    connection = sqlite3.connect(data_dir / "semcache.db", isolation_level=None)
    connection.execute(sql, params)
    connection.close()


def test_ids_sort_by_age_and_do_not_repeat() -> None:
    ids = [new_entry_id(second) for second in (1.0, 1.5, 2.0, 1e9, 2e9)]
    assert ids == sorted(ids)
    assert len({new_entry_id(5.0) for _ in range(100)}) == 100
    assert all(len(name) == 18 and name.startswith("e_") for name in ids)


def test_an_entry_comes_back_as_it_went_in(store: Store, open_store: OpenStore) -> None:
    original = entry(1, answer="a\x00b 😀", pinned=True)
    assert store.put_entry(original)
    again = open_store(replace(PLENTY, ttl_s=60))
    (found,) = again.find_exact(original.scope, original.request_key)
    assert found == again.get_entry(original.id)
    assert found.answer == original.answer
    assert found.messages == original.messages
    assert found.sampling == original.sampling
    assert found.answer_tokens == original.answer_tokens
    assert found.embedding == original.embedding
    assert (found.pinned, found.last_used_at) == (True, original.created_at)
    assert found.expires_at == original.created_at + 60


@pytest.mark.parametrize(
    "change",
    [
        "answer = 'another'", "answer_tokens = x'01000000'", "prompt = 'p'", "messages = '[]'", "sampling = '{}'",
        "finish_reason = 'length'", "embedding = x'00000000'", "embedding = NULL", "scope = 'user:os:1/bob'",
        "request_key = 'req2'", "fingerprint = 'fp2'", "context_key = 'c'", "params_key = 'p'", "checksum = 'x'",
        "answer = CAST(x'ff' AS TEXT)", "num_prompt_tokens = 6", "expires_at = 3e9", "compute_ms = 0",
        "id = 'e_another'", "id = CAST(id AS BLOB)", "id = CAST(x'ff' AS TEXT)",
    ],
)  # fmt: skip
def test_a_changed_row_is_absent_counted_and_gone(store: Store, data_dir: Path, change: str) -> None:
    assert store.put_entry(entry(1))
    assert store.put_entry(entry(2, request_key="other"))
    edit(data_dir, f"UPDATE entries SET {change} WHERE id = ?", entry(1).id)
    assert store.get_entry(entry(1).id) is None
    assert [found.id for found in store.list_entries()] == [entry(2).id]
    assert store.counters()["damaged_entries"] == 1
    assert [found.id for found, _ in store.nearest(ALICE.scope, vector(1), 5, None)] == [entry(2).id]
    assert store.check().ok


LEAVES: dict[str, Callable[[Store], object]] = {
    "found": lambda store: store.find_exact(ALICE.scope, "req1"),
    "near": lambda store: (store.nearest(ALICE.scope, vector(1), 9, None), store.list_entries()),
    "donor": lambda store: (store.openings.find(ALICE.scope, "fp1", (1, 2, 1)), store.list_entries()),
    "checked": lambda store: store.check(fix=True),
    "cleared": lambda store: store.clear(user=ALICE.user),
    "evicted": Store.evict,
    "expired": Store.evict,
}


@pytest.mark.parametrize("way", LEAVES)
@pytest.mark.parametrize("damaged", ["CAST(id AS BLOB)", "CAST(x'ff' AS TEXT)"])
def test_an_entry_whose_id_is_no_text_leaves_in_every_way(
    open_store: OpenStore, clock: Clock, data_dir: Path, damaged: str, way: str
) -> None:
    store = open_store()
    # Neighbours that are as near as each other are ordered by id.
    store.put_entry(entry(1, embedding=entry(2).embedding))
    store.put_entry(entry(2, user=BOB.user, pinned=True))
    edit(data_dir, f"UPDATE entries SET id = {damaged} WHERE request_key = 'req1'")
    if way == "evicted":
        store = open_store(StoreLimits(0, 1))
    elif way == "expired":
        store, clock.now_s = open_store(StoreLimits(0, 1 << 24, ttl_s=60)), clock.now_s + 100
    LEAVES[way](store)
    assert store.num_entries() == 1
    assert [found.id for found in store.list_entries()] == [entry(2).id]
    assert store.check().ok


@pytest.mark.parametrize("value", ["text", b"\xff", math.inf, 1e300, -1e300])
@pytest.mark.parametrize("column", ["last_used_at", "hits"])
def test_a_number_that_no_checksum_covers_costs_no_answer(
    store: Store, data_dir: Path, column: str, value: object
) -> None:
    store.put_entry(entry(1))
    edit(data_dir, f"UPDATE entries SET {column} = ?", value)
    (found,) = store.list_entries()
    assert isinstance(found.hits, int)
    assert found.last_used_at in (0.0, entry(1).created_at)
    store.touch_entry(found.id)
    assert store.get_entry(found.id) is not None


def test_moving_an_answer_to_another_scope_or_request_serves_nothing(store: Store, data_dir: Path) -> None:
    store.put_entry(entry(1))
    edit(data_dir, "UPDATE entries SET scope = ?, request_key = 'req9'", BOB.scope)
    assert store.find_exact(BOB.scope, "req9") == []


def test_a_refreshed_answer_replaces_the_old_one_and_stays_pinned(store: Store) -> None:
    store.put_entry(entry(1, pinned=True))
    store.put_entry(entry(2, request_key="req1", answer="newer"))
    (found,) = store.find_exact(ALICE.scope, "req1")
    assert (found.answer, found.pinned) == ("newer", True)
    assert [e.id for e, _ in store.nearest(ALICE.scope, vector(1), 5, None)] == [entry(2).id]


def test_cut_answers_of_other_lengths_live_beside_a_finished_one(store: Store) -> None:
    store.put_entry(entry(1, request_key="r", finish_reason="length", num_completion_tokens=8))
    store.put_entry(entry(2, request_key="r", finish_reason="length", num_completion_tokens=16))
    store.put_entry(entry(3, request_key="r"))
    store.put_entry(entry(4, request_key="r", finish_reason="length", num_completion_tokens=8))
    assert [e.id for e in store.find_exact(ALICE.scope, "r")] == [entry(number).id for number in (4, 3, 2)]


def test_an_expired_entry_is_absent_and_purged(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(1 << 20, 1 << 20, ttl_s=60))
    store.put_entry(entry(0, created_at=clock.now_s))
    clock.now_s += 59
    assert store.find_exact(ALICE.scope, "req0")
    clock.now_s += 1
    assert store.find_exact(ALICE.scope, "req0") == []
    assert store.get_entry(entry(0).id) is None
    assert store.list_entries() == []
    assert store.nearest(ALICE.scope, vector(0), 1, None) == []
    assert store.num_entries() == 1
    assert store.evict() == 1
    assert store.num_entries() == 0
    assert store.counters()["expired_entries"] == 1


def test_the_ttl_of_the_day_counts(open_store: OpenStore, clock: Clock) -> None:
    def keeps(ttl_s: int) -> tuple[int, int]:
        """How many entries and blocks are found."""
        store = open_store(StoreLimits(1 << 20, 1 << 24, ttl_s=ttl_s))
        return len(store.find_exact(ALICE.scope, "req0")), len(store.load_prefix(chain(1)))

    store = open_store(StoreLimits(1 << 20, 1 << 24, ttl_s=60))
    store.put_entry(entry(0, created_at=clock.now_s))
    put_chain(store, chain(1))
    clock.now_s += 100
    assert keeps(60) == (0, 0)
    assert keeps(101) == keeps(0) == (1, 1)
    assert keeps(100) == (0, 0)


def test_a_deadline_that_an_older_version_wrote_does_not_count(store: Store, clock: Clock) -> None:
    store.put_entry(entry(0))
    with store._db.transaction() as connection:
        row = dict(connection.execute("SELECT * FROM entries").fetchone())
        row["expires_at"] = clock.now_s - 1
        connection.execute("UPDATE entries SET expires_at = ?, checksum = ?", (row["expires_at"], row_checksum(row)))
    (found,) = store.find_exact(ALICE.scope, "req0")
    assert found.expires_at is None
    assert store.evict() == 0


def test_touch_counts_and_time_never_runs_backwards(store: Store, clock: Clock) -> None:
    store.put_entry(entry(0))
    clock.now_s += 100
    store.touch_entry(entry(0).id)
    clock.now_s -= 500
    store.touch_entry(entry(0).id)
    found = store.get_entry(entry(0).id)
    assert found is not None
    assert (found.hits, found.last_used_at) == (2, 1_000_100.0)


def test_listing_filters_sorts_and_matches(store: Store, clock: Clock) -> None:
    for number in range(4):
        store.put_entry(entry(number))
    store.put_entry(entry(9, scope=BOB.scope, user=BOB.user, prompt="100% _sure_"))
    clock.now_s += 1000
    store.touch_entry(entry(2).id)
    names = lambda **filters: [e.id[-1] for e in store.list_entries(**filters)]  # noqa: E731
    assert names() == ["2", "9", "3", "1", "0"]
    assert names(sort="created", limit=2) == ["9", "3"]
    assert names(sort="hits", limit=1) == ["2"]
    assert names(user=BOB.user) == names(scopes=[BOB.scope]) == ["9"]
    assert names(scopes=[]) == []
    assert names(match="QUESTION 3") == ["3"]
    assert names(match="% _s") == ["9"]
    assert names(match=entry(1).id) == ["1"]
    assert names(match="nowhere") == []
    with pytest.raises(UsageError, match="used, created, hits, size"):
        store.list_entries(sort="colour")


@pytest.mark.parametrize("sort", SORTS)
def test_a_list_reads_the_rows_that_it_shows(store: Store, sort: str) -> None:
    for number in range(9):
        store.put_entry(entry(number))
    statements: list[str] = []
    store._db.connection.set_trace_callback(statements.append)
    assert len(store.list_entries(principal="os:1", shared="global", limit=3, sort=sort)) == 3
    store._db.connection.set_trace_callback(None)
    (sql,) = statements
    assert sql.endswith("LIMIT 3")
    plan = [row["detail"] for row in store._db.rows(f"EXPLAIN QUERY PLAN {sql.replace('-Inf', '-9e999')}")]
    assert plan[0].startswith("SCAN entries USING INDEX entries_"), plan
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan


def test_a_list_for_a_principal_holds_its_users_and_what_is_shared(store: Store) -> None:
    users = ["os:1", "os:1/ann", "os:10", "os:2", "os:2/os:1", "os:1/ben"]
    for number, user in enumerate(users):
        store.put_entry(entry(number, user=user, scope=f"user:{user}"))
    store.put_entry(entry(6, user="os:2", scope="global"))
    store.put_entry(entry(7, user="os:2", scope="global#run"))
    store.put_entry(entry(8, user="os:1", scope="global"))
    names = lambda **filters: [int(e.id[-1]) for e in store.list_entries(sort="created", **filters)]  # noqa: E731
    assert names(principal="os:1") == [8, 5, 1, 0]
    assert names(principal="os:1", shared="global") == [8, 6, 5, 1, 0]
    assert names(principal="os:1", shared="global", limit=3) == [8, 6, 5]
    assert names(principal="os:1", user="os:1/ann") == [1]
    assert names(principal="os:2", user="os:1/ann") == names(principal="os:3") == names(principal="os:%") == []


@pytest.mark.parametrize("is_locked", [False, True])
def test_damaged_rows_take_no_place_in_a_list(store: Store, data_dir: Path, is_locked: bool) -> None:
    for number in range(9):
        store.put_entry(entry(number))
    edit(data_dir, "UPDATE entries SET answer = 'another' WHERE id >= ?", entry(4).id)
    backup = sqlite3.connect(data_dir / "semcache.db", isolation_level=None)
    if is_locked:
        backup.execute("BEGIN IMMEDIATE")
    assert [found.id for found in store.list_entries(limit=2)] == [entry(3).id, entry(2).id]
    assert [found.id for found in store.list_entries(limit=99)] == [entry(number).id for number in (3, 2, 1, 0)]
    assert store.list_entries(limit=0) == []
    backup.close()
    assert len(store.list_entries(limit=-1)) == store.num_entries() == 4


def test_a_vector_that_has_no_direction_is_refused_but_the_answer_kept(store: Store, open_store: OpenStore) -> None:
    store.put_entry(entry(0))
    store.put_entry(entry(1, embedding=pack_vector(vector(1) * float("nan"))))
    store.put_entry(entry(2, embedding=b"abc"))
    store.put_entry(entry(3, embedder=None))
    store.put_entry(entry(4, embedding=pack_vector(vector(4, dim=9))))
    store.put_entry(entry(5, embedding=None, embedder=None))
    assert store.counters()["refused_embeddings"] == 4
    for reopen in (False, True):
        again = open_store(PLENTY) if reopen else store
        assert len(again.find_exact(ALICE.scope, "req1")) == 1
        assert [e.id for e, _ in again.nearest(ALICE.scope, vector(0), 9, None)] == [entry(0).id]


def test_text_that_has_no_utf8_is_not_stored_and_not_an_error(store: Store) -> None:
    assert not store.put_entry(entry(0, answer="\ud800"))
    assert store.counters()["write_failures"] == 1
    assert store.put_entry(entry(1))


def test_pin_and_unpin(store: Store) -> None:
    store.put_entry(entry(0))
    assert store.pin_entry(entry(0).id)
    assert store.list_entries()[0].pinned
    assert store.pin_entry(entry(0).id, pinned=False)
    assert not store.list_entries()[0].pinned
    assert not store.pin_entry("e_none")
