"""Answers are found by how they begin, in one scope of one model, and only while they live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon import drafts
from semcache.store.limits import StoreLimits
from semcache.store.openings import MAX_FOUND, OPENING_TOKENS, Opening
from semcache.store.store import DATABASE_NAME, Store

from .conftest import OpenStore
from .samples import ALICE, BOB, FEW, Clock, entry


def begins(store: Store, *tokens: int, scope: str = ALICE.scope, fingerprint: str = "fp1") -> list[Opening]:
    return store.openings.find(scope, fingerprint, tokens)


def put(store: Store, number: int, *tokens: int, **changes: Any) -> str:
    made = entry(number, answer_tokens=tokens, **changes)
    assert store.put_entry(made)
    return made.id


def test_both_sides_mean_the_same_opening() -> None:
    assert drafts.OPENING_TOKENS == OPENING_TOKENS


def test_an_answer_is_found_by_its_first_tokens(store: Store, open_store: OpenStore) -> None:
    put(store, 1, 7, 8, 9, 300_000)
    put(store, 2, 7, 8, 10)
    put(store, 3, 7, 8)
    put(store, 4, 0, 7, 8, 9)
    again = open_store()
    (found,) = begins(again, 7, 8, 9)
    assert found == Opening(entry(1).id, "question 1", (7, 8, 9, 300_000), True, entry(1).created_at)
    assert [item.tokens for item in begins(again, 7, 8, 10)] == [(7, 8, 10)]
    assert begins(again, 8, 9, 300_000) == []


def test_an_answer_that_was_cut_says_so(store: Store) -> None:
    put(store, 1, 1, 2, 3, finish_reason="length")
    assert [item.has_ended for item in begins(store, 1, 2, 3)] == [False]


def test_another_scope_or_model_has_none(store: Store) -> None:
    put(store, 1, 1, 2, 3)
    assert begins(store, 1, 2, 3, scope=BOB.scope) == []
    assert begins(store, 1, 2, 3, scope="") == []
    assert begins(store, 1, 2, 3, fingerprint="fp2") == []


def test_the_last_used_come_first_and_equal_answers_once(store: Store, clock: Clock) -> None:
    for number in range(MAX_FOUND + 3):
        put(store, number, 1, 2, 3, number)
    twin = put(store, 50, 1, 2, 3, 0)
    clock.now_s += 1000
    store.touch_entry(entry(2).id)
    found = begins(store, 1, 2, 3)
    assert len(found) == MAX_FOUND
    assert found[0].entry_id == entry(2).id
    assert len({item.tokens for item in found}) == MAX_FOUND
    assert twin in {item.entry_id for item in found}, "of equal answers the last used stands for both"


def test_what_is_expired_or_deleted_is_not_offered(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(ram_bytes=1 << 24, disk_bytes=1 << 24, ttl_s=60))
    put(store, 1, 1, 2, 3)
    gone = put(store, 2, 1, 2, 3, 4)
    assert len(begins(store, 1, 2, 3)) == 2
    store.delete_entries([gone])
    assert [item.entry_id for item in begins(store, 1, 2, 3)] == [entry(1).id]
    clock.now_s = entry(1).created_at + 60
    assert begins(store, 1, 2, 3) == []


def test_a_row_of_broken_tokens_is_skipped(store: Store) -> None:
    put(store, 1, 1, 2, 3, 4)
    with store._db.transaction() as connection:
        connection.execute("UPDATE entries SET answer_tokens = answer_tokens || x'00'")
    assert begins(store, 1, 2, 3) == []


def test_a_damaged_index_shows_nobody_anothers_prompt(store: Store, open_store: OpenStore, data_dir: Path) -> None:
    put(store, 1, 1, 2, 3, scope=BOB.scope)
    store.close()
    path, eve = data_dir / DATABASE_NAME, BOB.scope.replace("bob", "eve")
    rest = b"fp1" + np.asarray((1, 2, 3), "<i4").tobytes()  # side by side in this index only
    content = path.read_bytes()
    assert content.count(BOB.scope.encode() + rest) == 1
    path.write_bytes(content.replace(BOB.scope.encode() + rest, eve.encode() + rest))
    again = open_store()
    assert begins(again, 1, 2, 3, scope=eve) == []
    assert again.counters()["damaged_entries"] == 1
    assert again._db.is_corrupt, "so that the next start compares indexes with tables"


def test_a_damaged_row_is_no_donor(store: Store) -> None:
    put(store, 1, 1, 2, 3)
    put(store, 2, 1, 2, 3, 4)
    with store._db.transaction() as connection:
        connection.execute("UPDATE entries SET prompt = 'of another' WHERE id = ?", (entry(1).id,))
    assert [item.entry_id for item in begins(store, 1, 2, 3)] == [entry(2).id]
    assert store.counters()["damaged_entries"] == 1


def test_a_closed_store_finds_nothing(store: Store) -> None:
    put(store, 1, 1, 2, 3)
    store.close()
    assert begins(store, 1, 2, 3) == []


def test_the_index_is_used(store: Store) -> None:
    from semcache.store import openings

    plan = store._db.rows(f"EXPLAIN QUERY PLAN {openings._FIND}", ("s", "f", b"", 0.0))
    assert any("USING INDEX" in row["detail"] and "SCAN" not in row["detail"] for row in plan), [
        row["detail"] for row in plan
    ]


@FEW
@given(
    answers=st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=8), opening=st.tuples(*[st.integers(0, 2)] * 3)
)
def test_as_a_plain_search_would_find(answers: list[list[int]], opening: tuple[int, int, int]) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "data", StoreLimits(ram_bytes=1 << 20, disk_bytes=1 << 24), clock=Clock())
        for number, tokens in enumerate(answers):
            put(store, number, *tokens)
        expected = {tuple(tokens) for tokens in answers if tuple(tokens[:OPENING_TOKENS]) == opening}
        found = {item.tokens for item in begins(store, *opening)}
        assert found <= expected
        assert len(found) == min(len(expected), MAX_FOUND)
        store.close()
