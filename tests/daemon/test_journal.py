"""What is kept and shown of past requests: each principal's own, of memory and store, whatever is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from semcache.config import Config
from semcache.daemon.cache.policy import Candidate, Considered
from semcache.daemon.cache.strategy import access
from semcache.daemon.journal import Journal
from semcache.daemon.library import Library
from semcache.daemon.receipts import ask_receipt
from semcache.daemon.request import Outcome, Receipt, Request, RequestState
from semcache.store.entries import Entry
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from tests.daemon.cache.words import Cache, asked


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


def files_with(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def told_of(entry: Entry, outcome: Outcome, reason: str, entry_id: str | None) -> Receipt:
    return Receipt(outcome, reason, "global_only", scope="global", entry_id=entry_id, matched_prompt=entry.prompt)


def test_forgetting_a_user_leaves_nothing_in_what_others_were_told(store: Store, tmp_path: Path) -> None:
    secret = "PLANTED-SECRET-7391"
    granted = access("global_only", user="os:1/ann", allow_global="own")
    entry = Cache(store).answer(asked(secret, user="os:1/ann"), f"answer to {secret}", granted=granted)
    candidate = Candidate(entry.id, entry.scope, entry.prompt, entry.answer, 0.9)
    journal = Journal(store)
    for receipt in (
        told_of(entry, Outcome.SEMANTIC, "similar", entry.id), told_of(entry, Outcome.DRAFT, "no_candidate", entry.id),
        told_of(entry, Outcome.EXACT, "in_flight", None),
    ):  # fmt: skip
        request = asked("what is rain", user="os:1/ben")
        request.id, request.explains = f"req_{receipt.reason}", True
        request.considered = (Considered(candidate, "similar"),)
        request.match(receipt)
        journal.opened(request)
        request.end(RequestState.FINISHED)
        journal.record(request, 0.0)
    assert len(files_with(tmp_path, secret)) > 0
    store.forget_user("os:1/ann")
    kept = store.recent_requests(principal="os:1/ben")
    assert len(kept) == 3
    assert [row.receipt["cache"]["matched_prompt"] for row in kept] == [None] * 3
    store.close()
    assert files_with(tmp_path, secret) == []


def test_what_is_remembered_of_a_deleted_answer_goes_with_it(store: Store) -> None:
    granted = access("global_only", user="os:1/ann", allow_global="own")
    gone, kept = (
        Cache(store).answer(asked(words, user="os:1/ann"), "an answer", granted=granted)
        for words in ("what is rain", "what is snow")
    )
    journal = Journal(store)
    library = Library(
        config=Config(), store=store, forget_scope=lambda scope: None, forget_entry=lambda scope, entry_id: None,
        save_scope=lambda scope: None, forget_matches=journal.forget_matches,
    )  # fmt: skip
    requests = []
    for entry in (gone, kept):
        request = asked("what is weather", user="os:1/ben")
        request.id = f"req_{entry.id}"
        request.considered = tuple(
            Considered(Candidate(one.id, one.scope, one.prompt, one.answer, 0.9), "similar") for one in (gone, kept)
        )
        request.match(told_of(entry, Outcome.SEMANTIC, "similar", entry.id))
        journal.opened(request)
        requests.append(request)
    running = requests.pop()
    requests[0].end(RequestState.FINISHED)
    library.remove("os:1", gone.id)
    assert [ask_receipt(request)["cache"]["matched_prompt"] for request in requests] == [None]
    assert [item.candidate.entry_id for item in requests[0].considered] == [kept.id]
    assert len(running.considered) == 2
    running.end(RequestState.FINISHED)
    library.clear("os:1", "os:1/ann", None)
    assert ask_receipt(running)["cache"]["matched_prompt"] is None
    assert running.considered == ()


def test_of_a_request_that_wants_nothing_stored_history_has_numbers_only(store: Store, tmp_path: Path) -> None:
    secret = "PLANTED-SECRET-7391"
    journal = Journal(store)
    request = asked(secret, options={"no_store": True})
    request.explains = True
    request.considered = (Considered(Candidate("e_1", "user:os:1", "another", secret, 0.9), "similar"),)
    request.match(Receipt(Outcome.EXACT, "identical", "per_user", scope="user", entry_id="e_1", matched_prompt=secret))
    journal.opened(request)
    request.emit([1, 2, 3], secret)
    request.end(RequestState.FINISHED)
    journal.record(request, 5.0)
    (row,) = store.recent_requests()
    assert (row.prompt, row.answer, row.outcome, row.state) == ("", "", "exact", "finished")
    assert (row.receipt["prompt"], row.receipt["answer"], row.receipt["cache"]["matched_prompt"]) == ("", "", None)
    assert row.receipt["usage"]["completion_tokens"] == 3
    assert row.receipt["timing_ms"]["total"] is not None
    total = store.usage().total
    assert (total.requests, total.exact, total.completion_tokens) == (1, 1, 3)
    shown = journal.request(request.id)
    assert shown is not None
    assert shown.last_user_message == secret, "its own user still sees it"
    store.close()
    assert files_with(tmp_path, secret) == []
