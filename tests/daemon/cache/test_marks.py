"""A pair that was marked is held from then on, in its scope, after a restart, and whoever asks at the same time."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.cache.evidence import EvidenceBook
from semcache.daemon.cache.marks import MarkedPairs, pair_key
from semcache.daemon.cache.policy import Candidate, Considered, ThresholdPolicy
from semcache.daemon.cache.verified import VerifiedPolicy
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from tests.store.refusals import out_of_reach

LIMITS = StoreLimits(ram_bytes=1 << 20, disk_bytes=1 << 24)


def marks_of(store: Store) -> MarkedPairs:
    return MarkedPairs(store.evidence.load_negatives, store.evidence.add_negative)


def test_a_marked_pair_is_held_in_its_scope_and_direction_across_a_restart(tmp_path: Path) -> None:
    for is_first in (True, False):
        store = Store.open(tmp_path / "data", LIMITS)
        marks = marks_of(store)
        assert marks.holds("user:a", "How far?", "how  FAR away?") != is_first
        marks.mark("user:a", "How far?", "How far away?")
        assert marks.holds("user:a", "how far", "how far away")
        assert not marks.holds("user:b", "How far?", "How far away?")
        assert not marks.holds("user:a", "How far?", "How far?")
        store.close()


def test_a_cleared_scope_is_read_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", LIMITS)
    marks = marks_of(store)
    marks.mark("user:a", "one", "two")
    marks.mark("user:b", "one", "two")
    store.clear(scopes=["user:a"])
    assert marks.holds("user:a", "one", "two"), "until it is told"
    marks.forget_scope("user:a")
    assert not marks.holds("user:a", "one", "two")
    assert marks.holds("user:b", "one", "two")
    store.close()


def test_a_cleared_scope_takes_its_namespaces_along(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", LIMITS)
    marks, scopes = marks_of(store), ("user:a", "user:a#run", "user:ab")
    for scope in scopes:
        marks.mark(scope, "one", "two")
    store.clear()
    marks.forget_scope("user:a")
    assert [marks.holds(scope, "one", "two") for scope in scopes] == [False, False, True], "until it is told"
    store.close()


def test_marks_that_cannot_be_read_are_not_taken_for_none(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", LIMITS)
    assert marks_of(store).mark("user:a", "What is hail?", "What is rain?")
    marks, candidate = marks_of(store), Candidate("e_1", "user:a", "What is rain?", "water", 0.99)
    policy = ThresholdPolicy(0.8, marks)
    with out_of_reach(store, "negatives"):
        assert marks.holds("user:a", "What is hail?", "What is rain?") is None
        verdict = policy.decide("What is hail?", [candidate], ["user:a"])
        assert (verdict.serve, verdict.reason) == (False, "unreadable")
        assert not marks.mark("user:a", "What is snow?", "What is rain?")
    assert policy.decide("What is hail?", [candidate], ["user:a"]).reason == "policy:marked_wrong"
    store.close()


def test_both_policies_know_the_same_pairs(tmp_path: Path) -> None:
    """What one policy learned is held under the other, after the configuration was changed."""
    store = Store.open(tmp_path / "data", LIMITS)
    candidate = Candidate("e_1", "user:a", "What is rain?", "water", 0.99)
    policy = VerifiedPolicy(EvidenceBook(store.evidence))
    policy.learn("What is hail?", Considered(candidate, "similar"), False, source="user", served=True)
    assert marks_of(store).holds("user:a", "What is hail?", "What is rain?")
    marks_of(store).mark("user:a", "What is snow?", "What is rain?")
    again = VerifiedPolicy(EvidenceBook(store.evidence))
    assert again.decide("What is snow?", [candidate], ["user:a"]).reason == "policy:marked_wrong"
    store.close()


def test_a_mark_is_not_lost_to_a_reader_between_memory_and_store() -> None:
    """The scope is forgotten and read again at the worst moment: while the mark is being written."""
    kept: dict[str, set[str]] = defaultdict(set)

    def load(scope: str) -> frozenset[str]:
        return frozenset(kept[scope])

    def add(scope: str, key: str) -> bool:
        marks.forget_scope(scope)
        marks.holds(scope, "", "")
        kept[scope].add(key)
        return True

    marks = MarkedPairs(load, add)
    marks.mark("user:a", "one", "two")
    assert marks.holds("user:a", "one", "two")


def test_marks_of_many_threads_are_all_held() -> None:
    marks, barrier = MarkedPairs(), threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        for i in range(200):
            marks.mark("user:a", f"asked {number} {i}", "stored")
            assert marks.holds("user:a", f"asked {number} {i}", "stored")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(marks.holds("user:a", f"asked {number} {i}", "stored") for number in range(4) for i in range(200))


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_can_be_marked(asked: str, stored: str) -> None:
    marks = MarkedPairs()
    marks.mark("s", asked, stored)
    assert marks.holds("s", asked, stored)
    assert len(pair_key(asked, stored)) == 64
