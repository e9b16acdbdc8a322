"""What is shown of past requests: each principal's own, from memory and from the store, whatever is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from semcache.daemon.journal import Journal
from semcache.daemon.request import Request, RequestState
from semcache.store.store import Store, StoreLimits
from tests.daemon.cache.words import asked


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=1, disk_bytes=10**8))
    yield store
    store.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def ended(journal: Journal, request_id: str, user: str) -> Request:
    request = asked("what is rain", user=user)
    request.id = request_id
    journal.opened(request)
    request.end(RequestState.FINISHED)
    journal.record(request, 0.0)
    return request


async def recent(journal: Journal, pool: ThreadPoolExecutor, limit: int, principal: str = "os:1") -> list[str]:
    return [receipt["id"] for receipt in await journal.recent(limit, principal, pool)]


async def test_requests_of_others_take_no_place(store: Store, pool: ThreadPoolExecutor) -> None:
    before = Journal(store)
    for i, user in enumerate(["os:1", "os:1/ann", "os:10", "os:2", "os:1/ann", "os:2", "os:2", "os:2"]):
        ended(before, f"r{i}", user)
    after = Journal(store)
    ended(after, "new", "os:1/bob")
    ended(after, "newer", "os:2")
    assert await recent(after, pool, 9) == ["new", "r4", "r1", "r0"]
    assert await recent(after, pool, 3) == ["new", "r4", "r1"]
    assert await recent(after, pool, 1) == ["new"]
    assert await recent(after, pool, 2, "os:10") == ["r2"]


@pytest.mark.parametrize("damage", ["{}", "[]", "{", '{"id": "another"}'])
async def test_a_damaged_row_is_left_out(store: Store, pool: ThreadPoolExecutor, damage: str) -> None:
    before = Journal(store)
    for i in range(3):
        ended(before, f"r{i}", "os:1")
    with store._db.transaction() as connection:
        connection.execute("UPDATE requests SET receipt = ? WHERE id = 'r1'", (damage,))
    assert await recent(Journal(store), pool, 9) == ["r2", "r0"]
