"""Clearing: what is still to be written is forgotten before and after the rows, what was learned after them."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest

from semcache.config import CacheConfig, Config
from semcache.daemon.cache.strategy import access
from semcache.daemon.library import Library
from semcache.errors import NotFoundError, PinLimitError, StoreError
from semcache.store.entries import SORTS
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from tests.daemon.cache.school import School
from tests.daemon.cache.words import Cache, asked
from tests.store.samples import BrokenFiles
from tests.store.test_entries import edit

MINE = ["user:os:1/ann", "global:os:1"]


def test_nothing_is_written_behind_a_removal(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    entry = Cache(store).answer(asked("what is rain"))
    seen: list[tuple[str, str, bool]] = []

    def forget(what: str, scope: str) -> None:
        seen.append((what, scope, store.get_entry(entry.id) is not None))

    library = Library(
        config=Config(), store=store, forget_scope=lambda scope: forget("learned", scope),
        forget_entry=lambda scope, entry_id: None, save_scope=lambda scope: None,
        forget_turns=lambda scope: forget("turns", scope),
    )  # fmt: skip
    removed = library.clear("os:1", "os:1/ann", None)
    assert (removed["entries"], removed["pinned"]) == (1, 0)
    assert removed["blocks"] > 0
    assert [(what, scope) for what, scope, is_there in seen if is_there] == [("turns", scope) for scope in MINE]
    after = {(what, scope) for what, scope, is_there in seen if not is_there}
    assert after == {(what, scope) for what in ("turns", "learned") for scope in MINE}
    seen.clear()
    library.clear("os:1", "os:1/ann", "run")
    assert {scope for _, scope, _ in seen} == {f"{scope}#run" for scope in MINE}
    store.close()


def library_of(store: Store, *, forgotten: list[tuple[str, str]] | None = None, allow_global: str = "own") -> Library:
    told = [] if forgotten is None else forgotten
    return Library(
        config=Config(cache=CacheConfig(allow_global=allow_global)), store=store, forget_scope=lambda scope: None,
        forget_entry=lambda scope, entry_id: None, save_scope=lambda scope: None,
        forget_conversation=lambda scope, messages: told.append((scope, messages[-1][1])),
    )  # fmt: skip


def test_clearing_one_user_costs_a_shared_scope_nothing_that_others_taught_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    for user in ("os:1/ann", "os:1/ben"):
        granted = access("global_only", user=user, allow_global="own")
        Cache(store).answer(asked(f"what is {user}", user=user), granted=granted)
    school, scopes = School(store, learns=True), ("global:os:1", "global:os:1#run", MINE[0])
    lessons, policy = school.lessons, school.policy
    assert policy is not None
    library = Library(
        config=Config(), store=store, forget_scope=lessons.forget_scope, forget_entry=lessons.forget_entry,
        save_scope=lessons.save,
    )  # fmt: skip
    policy.decide("what is rain", [], scopes)
    library.clear("os:1", "os:1/ann", None)
    assert [policy.status(scope).requests for scope in scopes] == [1, 1, 0]
    library.clear("os:1", "os:1/ben", None)
    assert policy.status("global:os:1").requests == 0, "nobody has anything there any more"
    store.close()


@pytest.mark.parametrize("value", ["text", b"\xff", math.inf, 1e300, -1e300])
@pytest.mark.parametrize("column", ["last_used_at", "hits"])
def test_a_damaged_number_costs_no_list(tmp_path: Path, column: str, value: object) -> None:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    entry = Cache(store).answer(asked("what is rain"))
    edit(tmp_path / "data", f"UPDATE entries SET {column} = ?", value)
    library = library_of(store)
    for sort in SORTS:
        listed = library.entries("os:1", None, 9, sort, None)
        assert [row["id"] for row in listed] == [entry.id]
        json.dumps([listed, library.entry("os:1", entry.id)], allow_nan=False)  # as the server writes it
    store.close()


def test_files_that_stay_are_told_once_all_users_are_cleared(tmp_path: Path) -> None:
    files = BrokenFiles()
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8), files=files)
    for user in ("os:1/ann", "os:1/ben"):
        Cache(store).answer(asked("what is rain", user=user))
    files.fail["unlink"] = errno.EACCES
    with pytest.raises(StoreError, match="could not be removed"):
        library_of(store).clear("os:1", None, None)
    assert store.num_entries() == 0
    files.fail.clear()
    store.close()


def test_a_pin_is_shown_and_kept_by_clear_and_removed_by_name(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    forgotten: list[tuple[str, str]] = []
    library = library_of(store, forgotten=forgotten)
    request = asked("what is rain" * 8)
    entry = Cache(store).answer(request)
    Cache(store).answer(asked("what is snow"))
    for _ in range(2):
        pinned = library.pin("os:1", entry.id, pinned=True)
        detail = library.entry("os:1", entry.id)
        assert (pinned["id"], pinned["pinned"], detail["pinned"]) == (entry.id, True, True)
        # 96 tokens are three chunks of two blocks each, and a record without tokens.
        assert (pinned["blocks"], detail["blocks"]) == (7, 7)
        assert detail["kv_bytes"] is not None
        assert pinned["bytes"] == entry.size_bytes + detail["kv_bytes"]
    assert [row["pinned"] for row in library.entries("os:1", None, 9, "created", "rain")] == [True]
    removed = library.clear("os:1", None, None, keep_pinned=True)
    assert (removed["entries"], removed["pinned"]) == (1, 1)
    assert Cache(store).find(request).receipt.outcome == "exact"
    assert not library.pin("os:1", entry.id, pinned=False)["pinned"]
    assert not library.pin("os:1", entry.id, pinned=False)["pinned"]
    library.pin("os:1", entry.id, pinned=True)
    library.remove("os:1", entry.id)
    assert forgotten == [(entry.scope, "what is rain" * 8)]
    for pins in (True, False):
        with pytest.raises(NotFoundError):
            library.pin("os:1", entry.id, pinned=pins)
    store.close()


def test_only_its_owner_pins_an_entry(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    library = library_of(store, allow_global="all")
    private = Cache(store).answer(asked("what is rain"))
    granted = access("global_only", user="os:1/ann", allow_global="all")
    shared = Cache(store).answer(asked("what is snow"), granted=granted)
    for pins in (True, False):
        with pytest.raises(NotFoundError, match="no entry"):
            library.pin("os:2", private.id, pinned=pins)
        with pytest.raises(NotFoundError, match="belongs to somebody else"):
            library.pin("os:2", shared.id, pinned=pins)
    assert library.pin("os:1", shared.id, pinned=True)["pinned"]
    assert not library.entry("os:1", private.id)["pinned"]
    store.close()


def test_a_list_is_as_long_as_asked_for_whoever_else_stored_something(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    for user in ("os:1/ann", "os:1/ben", "os:2"):
        for what in ("rain", "snow", "hail"):
            Cache(store).answer(asked(f"what is {what}", user=user))
    for who in ("os:1", "os:2"):
        for what in ("rain", "snow"):
            granted = access("global_only", user=who, allow_global="all")
            Cache(store).answer(asked(f"{who} what is {what}", user=who), granted=granted)

    def users(caller: str, limit: int, *, user: str | None = None, allow_global: str = "own") -> list[str]:
        library = library_of(store, allow_global=allow_global)
        return [row["user"] for row in library.entries(caller, user, limit, "created", None)]

    assert users("os:2", 99) == ["os:2"] * 5
    assert users("os:1", 99) == ["os:1"] * 2 + ["os:1/ben"] * 3 + ["os:1/ann"] * 3
    assert users("os:1", 4) == ["os:1"] * 2 + ["os:1/ben"] * 2
    assert users("os:1", 3, user="os:1/ann") == ["os:1/ann"] * 3
    assert users("os:1", 4, allow_global="all") == ["os:2"] * 2 + ["os:1"] * 2
    assert users("os:1", 99, user="os:1/ann", allow_global="all") == ["os:1/ann"] * 3
    store.close()


def test_a_pin_too_many_is_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=0, disk_bytes=10_000))
    library = library_of(store)
    entry = Cache(store).answer(asked("what is rain" * 8))
    with pytest.raises(PinLimitError, match="of the disk tier"):
        library.pin("os:1", entry.id, pinned=True)
    assert not library.entry("os:1", entry.id)["pinned"]
    store.close()
