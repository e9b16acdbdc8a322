"""Rows and their embeddings go together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, BOB, Clock, entry, vector

DELETE: dict[str, Callable[[Store, Clock], object]] = {
    "forgotten": lambda store, clock: store.forget_user(ALICE.user),
    "deleted": lambda store, clock: store.delete_entries([entry(1).id, entry(2).id]),
    "cleared": lambda store, clock: store.clear(scopes=[ALICE.scope]),
    "expired": lambda store, clock: (setattr(clock, "now_s", clock.now_s + 100), store.evict()),
}


@pytest.mark.parametrize("how", DELETE)
def test_of_a_scope_without_answers_nothing_is_left_in_memory(how: str, open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 1 << 24, ttl_s=60))
    for number in (1, 2):
        store.put_entry(entry(number))
    store.put_entry(entry(3, scope=BOB.scope, user=BOB.user))
    assert len(store.nearest(ALICE.scope, vector(1), 5, None)) == 2
    DELETE[how](store, clock)
    assert list(store._answers._vectors._scopes) == ([BOB.scope] if how != "expired" else [])
    assert store.nearest(ALICE.scope, vector(1), 5, None) == []
    store.put_entry(entry(1, created_at=clock()))
    assert [found.id for found, _ in store.nearest(ALICE.scope, vector(1), 5, None)] == [entry(1).id]


def test_an_answer_that_is_expired_and_still_stored_is_passed_over_once(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 1 << 24, ttl_s=60))
    store.put_entry(entry(1))
    clock.now_s += 100
    assert store.nearest(ALICE.scope, vector(1), 5, None) == []
    assert not store.has_neighbours(ALICE.scope, None)
