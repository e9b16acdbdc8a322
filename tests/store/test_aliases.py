"""Another wording finds its entry while that lives, and never another one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from semcache.store import aliases
from semcache.store.limits import StoreLimits
from semcache.store.rows import checksum
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, BOB, PLENTY, Clock, alias, decision, entry, evidence
from .test_entries import edit


def found(store: Store, key: str, scope: str = ALICE.scope) -> str | None:
    entry_ = store.aliases.find(scope, key)
    return None if entry_ is None else entry_.id


def rows(store: Store) -> int:
    return store._db.number("SELECT count(*) FROM aliases")


def test_an_alias_is_a_key_of_its_entry_in_its_scope_only(store: Store, open_store: OpenStore) -> None:
    store.put_entry(entry(1))
    assert store.aliases.put(alias(1, prompt="ünïcode 😀"))
    again = open_store()
    assert found(again, "alias1") == entry(1).id
    assert found(again, "alias1", BOB.scope) is None
    assert found(again, "other") is None
    assert again.find_exact(ALICE.scope, "alias1") == []
    assert again.aliases.of(entry(1).id) == [alias(1, prompt="ünïcode 😀", hits=1)]
    assert again.aliases.of(entry(2).id) == []


def test_only_a_living_entry_of_the_same_scope_has_aliases(store: Store) -> None:
    store.put_entry(entry(1, scope=BOB.scope))
    assert not store.aliases.put(alias(1))
    assert not store.aliases.put(alias(2))
    assert rows(store) == store.counters()["write_failures"] == 0


def test_a_use_is_counted_and_time_never_runs_backwards(store: Store, clock: Clock) -> None:
    store.put_entry(entry(1))
    store.aliases.put(alias(1))
    for now_s in (1_000_500.0, 900_000.0):
        clock.now_s = now_s
        assert found(store, "alias1")
    assert store.aliases.find(ALICE.scope, "alias1", count=False)
    assert store.aliases.of(entry(1).id)[0].hits == 2
    assert store._db.number("SELECT last_used_at FROM aliases") == 1_000_500


def test_the_newer_alias_of_a_request_wins(store: Store) -> None:
    for number in (1, 2):
        store.put_entry(entry(number))
        assert store.aliases.put(alias(number, "key"))
    assert found(store, "key") == entry(2).id
    assert store.aliases.of(entry(1).id) == []
    assert store.aliases.delete(ALICE.scope, "key")
    assert not store.aliases.delete(ALICE.scope, "key")
    assert found(store, "key") is None


def test_an_alias_dies_with_its_entry(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 1 << 20, ttl_s=60))
    endings = {
        1: lambda: store.delete_entries([entry(1).id]),
        2: lambda: store.clear(scopes=[ALICE.scope]),
        3: lambda: store.forget_user(ALICE.user),
    }
    for number, end in endings.items():
        store.put_entry(entry(number, created_at=clock.now_s))
        assert store.aliases.put(alias(number))
        end()
        assert rows(store) == 0
    store.put_entry(entry(4, created_at=clock.now_s))
    store.aliases.put(alias(4))
    clock.now_s += 60
    assert found(store, "alias4") is None  # expired, and the alias is removed where it is met
    assert rows(store) == 0
    store.aliases.put(alias(4))
    assert store.evict() == 1
    assert rows(store) == 0


def test_an_alias_whose_entry_is_gone_or_damaged_is_a_miss(store: Store, data_dir: Path) -> None:
    for number in (1, 2):
        store.put_entry(entry(number))
        store.aliases.put(alias(number))
    edit(data_dir, "DELETE FROM entries WHERE id = ?", entry(1).id)  # this connection enforces no foreign keys
    edit(data_dir, "UPDATE entries SET answer = 'no' WHERE id = ?", entry(2).id)
    assert found(store, "alias1") is None
    assert found(store, "alias2") is None
    assert rows(store) == 0
    assert store.counters()["damaged_aliases"] == 0
    assert store.counters()["damaged_entries"] == 1


@pytest.mark.parametrize(
    "change",
    [
        "entry_id = 'e_0000000000000002'", "prompt = 'p'", "user = 'os:1/bob'", "created_at = 0", "checksum = ''",
        "prompt = CAST(x'ff' AS TEXT)", "entry_id = x'00'", "checksum = x'ff'", "checksum = CAST(x'ff' AS TEXT)",
    ],
)  # fmt: skip
def test_a_changed_row_is_absent_counted_and_gone(store: Store, data_dir: Path, change: str) -> None:
    for number in (1, 2):
        store.put_entry(entry(number))
    store.aliases.put(alias(1))
    edit(data_dir, f"UPDATE aliases SET {change}")
    assert found(store, "alias1") is None
    assert store.aliases.of(entry(1).id) == store.aliases.of(entry(2).id) == []
    assert store.counters()["damaged_aliases"] == 1
    assert rows(store) == 0


def test_an_alias_moved_to_another_scope_or_request_finds_nothing(store: Store, data_dir: Path) -> None:
    store.put_entry(entry(1))
    store.aliases.put(alias(1))
    edit(data_dir, "UPDATE aliases SET request_key = 'k', scope = ?", BOB.scope)
    assert found(store, "k", BOB.scope) is None
    assert found(store, "alias1") is None


def test_an_alias_of_another_scopes_entry_finds_nothing(store: Store, data_dir: Path) -> None:
    store.put_entry(entry(1))
    row = vars(alias(1, "k", scope=BOB.scope, created_at=0.0))
    del row["hits"]
    names, values = ", ".join(row), tuple(row.values())
    edit(
        data_dir,
        f"INSERT INTO aliases ({names}, last_used_at, size_bytes, checksum) VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?)",
        *values,
        checksum(row, row),
    )
    assert [problem.kind for problem in store.check().problems] == ["orphan_alias"]
    assert found(store, "k", BOB.scope) is None
    assert rows(store) == store.counters()["damaged_aliases"] == 0


def test_an_alias_that_moves_while_it_is_read_is_kept(data_dir: Path) -> None:
    during: list[Callable[[], object]] = []

    def clock() -> float:  # `find` looks at it between the alias and its entry
        if during:
            during.pop()()
        return 1_000_000.0

    store = Store.open(data_dir, PLENTY, clock=clock)
    try:
        store.put_entry(entry(1, answer="same"))
        store.aliases.put(alias(1))
        during.append(lambda: store.put_entry(entry(2, request_key="req1", answer="same")))
        assert found(store, "alias1") is None
        assert found(store, "alias1") == entry(2).id
    finally:
        store.close()


def test_aliases_follow_an_answer_that_stays_the_same(store: Store, clock: Clock) -> None:
    store.put_entry(entry(1, answer="same"))
    store.aliases.put(alias(1, "a"))
    store.aliases.put(alias(1, "b"))
    clock.now_s += 5
    assert found(store, "a") == entry(1).id
    store.put_entry(entry(2, request_key="req1", answer="same"))
    assert found(store, "a") == found(store, "b") == entry(2).id
    assert store.aliases.of(entry(2).id) == [alias(1, key, entry_id=entry(2).id, hits=2 - (key == "b")) for key in "ab"]
    store.put_entry(entry(2, request_key="req1", answer="same", compute_ms=1))  # the same id again
    assert found(store, "a") == entry(2).id
    store.put_entry(entry(3, request_key="req1", answer="another"))
    assert found(store, "a") is None
    assert rows(store) == 0


def test_aliases_stay_when_an_answer_of_another_length_comes(store: Store) -> None:
    store.put_entry(entry(1, answer="same"))
    store.aliases.put(alias(1))
    store.put_entry(entry(2, request_key="req1", answer="same", finish_reason="length"))
    assert found(store, "alias1") == entry(1).id


def test_a_request_with_an_answer_of_its_own_is_no_alias_any_more(store: Store) -> None:
    store.put_entry(entry(1))
    for key in ("req2", "req3"):
        store.aliases.put(alias(1, key))
    store.put_entry(entry(2))
    store.put_entry(entry(3, finish_reason="length"))  # a cut answer does not replace a whole one
    assert [item.request_key for item in store.aliases.of(entry(1).id)] == ["req3"]


def test_an_entry_keeps_the_aliases_that_are_used(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "MAX_ALIASES_PER_ENTRY", 3)
    store.put_entry(entry(1))
    store.put_entry(entry(2))
    store.aliases.put(alias(2, "theirs"))
    for number in range(5):
        assert store.aliases.put(alias(1, f"a{number}", created_at=clock.now_s))
        clock.now_s += 1
        assert found(store, "a0")
    assert [item.request_key for item in store.aliases.of(entry(1).id)] == ["a0", "a3", "a4"]
    store.aliases.put(alias(1, "late", created_at=0))  # whatever its clock says, the new one stays
    assert [item.request_key for item in store.aliases.of(entry(1).id)] == ["late", "a0", "a4"]
    assert found(store, "theirs") == entry(2).id


def test_aliases_count_for_their_user_and_leave_by_use(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 1 << 20, user_quota_bytes=20_000))
    for number in range(4):
        store.put_entry(entry(number))
    before = {row.user: row.disk_bytes for row in store.usage().users}
    for number in range(60):  # of another user's entries: only aliases can make room
        clock.now_s += 1
        made = alias(number % 4, f"b{number}", user=BOB.user, prompt="x" * 1000, created_at=clock.now_s)
        assert store.aliases.put(made)
        assert found(store, "b0")
    after = {row.user: row.disk_bytes for row in store.usage().users}
    assert after[ALICE.user] == before[ALICE.user]
    assert 0 < after[BOB.user] <= 20_000
    assert store.tier_status()["disk"].used_bytes == sum(after.values())
    assert found(store, "b0")
    assert found(store, "b59")
    assert found(store, "b1") is None
    assert store.counters()["evicted_aliases"] == 60 - rows(store) > 0
    assert (store.counters()["evicted_entries"], store.num_entries()) == (0, 4)


def test_text_that_has_no_utf8_is_no_alias_and_no_error(store: Store) -> None:
    store.put_entry(entry(1))
    assert not store.aliases.put(alias(1, prompt="\ud800"))
    assert store.counters()["write_failures"] == 1


def test_four_threads_learn_while_entries_come_and_go(store: Store) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                made = entry(100 * number + turn, request_key=f"r{turn % 5}", answer="the same")
                assert store.put_entry(made)
                store.aliases.put(alias(100 * number + turn, f"a{turn % 7}"))
                for key in range(7):
                    found = store.aliases.find(ALICE.scope, f"a{key}")
                    assert found is None or found.answer == "the same"
                assert store.decisions.record([decision(100 * number + turn)])
                assert store.decisions.label(f"req_{100 * number + turn}", made.id, bool(turn % 2), "audit")
                assert store.evidence.save_evidence(ALICE.scope, f"{number}", [evidence(100 * number + turn)])
                assert store.evidence.add_negative(ALICE.scope, f"pair{turn}")
                assert store.evidence.load_evidence(ALICE.scope).state is not None
                if turn % 8 == 7:
                    store.delete_entries([made.id])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.decisions.wrong_hits() == (160, 80)
    assert len(store.evidence.load_evidence(ALICE.scope).negatives) == 40
    counters = store.counters()
    assert {
        name for name, count in counters.items() if count and name.startswith(("damaged", "read", "write"))
    } == set()
    assert store.check().problems == ()
