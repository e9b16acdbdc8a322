"""Exact neighbours, with ties that ids decide."""

from __future__ import annotations

import gc
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.store.vectors import Partition, VectorIndex, unit

from .samples import FEW, vector

P, Q = Partition("fp", "c", "p", "m"), Partition("fp", "other", "p", "m")


def index() -> VectorIndex:
    return VectorIndex(lambda scope: [])


@pytest.fixture
def traced() -> Iterator[None]:
    """Memory of Python and of arrays is counted."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def taken_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def brute(
    rows: dict[str, tuple[Partition, np.ndarray]], query: np.ndarray, k: int, part: Partition | None
) -> list[str]:
    q = unit(query)
    assert q is not None
    scored = [(-float(unit(v) @ q), name) for name, (p, v) in rows.items() if part in (None, p)]
    return [name for _, name in sorted(scored)[:k]]


@FEW
@given(st.lists(st.tuples(st.sampled_from("ar"), st.integers(0, 30), st.booleans()), max_size=120), st.integers(0, 9))
def test_agrees_with_a_dictionary_after_any_adds_and_removes(steps: list[tuple[str, int, bool]], seed: int) -> None:
    ours, oracle = index(), {}
    for action, number, first in steps:
        name, partition = f"e{number:02d}", P if first else Q
        if action == "a":
            assert ours.add("s", name, partition, vector(number))
            oracle[name] = (partition, vector(number))
        else:
            ours.remove("s", name)
            oracle.pop(name, None)
    for part in (None, P, Q):
        for k in (1, 3, 100):
            assert [name for name, _ in ours.nearest("s", vector(100 + seed), k, part)] == brute(
                oracle, vector(100 + seed), k, part
            )


def test_equal_scores_are_ordered_by_id_also_at_the_cut() -> None:
    ours = index()
    for number in (7, 3, 9, 1, 5, 0):
        ours.add("s", f"e{number}", P, np.array([1.0, 0.0]))
    assert [name for name, _ in ours.nearest("s", np.array([2.0, 0.0]), 3, P)] == ["e0", "e1", "e3"]


def test_grows_past_its_first_rows() -> None:
    ours = index()
    for number in range(300):
        ours.add("s", f"e{number:03d}", P, vector(number))
    name, score = ours.nearest("s", vector(250), 1, P)[0]
    assert (name, round(score, 5)) == ("e250", 1.0)


def test_scopes_and_embedders_never_meet() -> None:
    ours = index()
    ours.add("alice", "a", P, vector(1))
    ours.add("alice", "b", Partition("fp", "c", "p", "other"), vector(1))
    assert ours.nearest("bob", vector(1), 5, None) == []
    assert [name for name, _ in ours.nearest("alice", vector(1), 5, P)] == ["a"]
    assert [name for name, _ in ours.nearest("alice", vector(1), 5, None, "other")] == ["b"]
    assert [name for name, _ in ours.nearest("alice", vector(1), 5, None)] == ["a", "b"]


@pytest.mark.parametrize(
    "poison",
    [
        np.array([np.nan, 1.0]),
        np.array([np.inf, 1.0]),
        np.zeros(2),
        np.empty(0),
        np.ones((2, 2)),
        np.ones(3),
        np.ones(9000),
    ],
)
def test_a_vector_without_direction_or_of_another_width_is_refused(poison: np.ndarray) -> None:
    ours = index()
    assert ours.add("s", "good", P, np.array([1.0, 0.0]))
    assert not ours.add("s", "bad", P, poison)
    assert [name for name, _ in ours.nearest("s", np.array([1.0, 0.0]), 5, None)] == ["good"]
    assert ours.nearest("s", poison, 5, P) == []


def test_huge_and_tiny_vectors_still_have_a_direction() -> None:
    ours = index()
    ours.add("s", "huge", P, np.array([3e38, 3e38], dtype=np.float32))
    ours.add("s", "tiny", P, np.array([1e-30, -1e-30], dtype=np.float32))
    assert [round(score, 5) for _, score in ours.nearest("s", np.array([1.0, 1.0]), 2, P)] == [1.0, 0.0]


def test_a_scope_is_loaded_once_and_damaged_rows_are_left_out() -> None:
    calls = []

    def load(scope: str) -> list[tuple[str, tuple[str, str, str, str], bytes]]:
        calls.append(scope)
        blob = np.array([1.0, 0.0], dtype="<f4").tobytes()
        return [
            ("ok", tuple(P), blob),
            ("odd", tuple(P), b"abc"),
            ("text", tuple(P), "abc"),
            ("nan", tuple(P), b"\xff" * 8),
        ]

    ours = VectorIndex(load)
    for _ in range(2):
        assert [name for name, _ in ours.nearest("s", np.array([1.0, 0.0]), 5, P)] == ["ok"]
    assert calls == ["s"]


def test_a_scope_that_is_being_read_keeps_no_other_waiting() -> None:
    begun, may_end, calls = threading.Event(), threading.Event(), []

    def load(scope: str) -> list[tuple[str, tuple[str, str, str, str], bytes]]:
        calls.append(scope)
        if scope == "large":
            begun.set()
            assert may_end.wait(60)
        return [("ok", tuple(P), vector(1).tobytes())]

    ours = VectorIndex(load)
    with ThreadPoolExecutor(4) as pool:
        try:
            asked = pool.submit(ours.nearest, "large", vector(1), 1, P)
            assert begun.wait(60)
            removed = pool.submit(ours.remove, "large", "ok")  # waits for what is being read, else it would come back
            others = [
                pool.submit(ours.add, "small", "new", P, vector(2)),
                pool.submit(lambda: (ours.has("other", P), ours.nearest("other", vector(1), 1, P))),
            ]
            for other in others:
                other.result(timeout=60)
            assert not asked.done()
            assert not removed.done()
        finally:
            may_end.set()
        assert [name for name, _ in asked.result()] == ["ok"]
        removed.result()
    assert not ours.has("large", P)
    assert sorted(calls) == ["large", "other", "small"]


def test_a_scope_that_could_not_be_read_is_read_again() -> None:
    calls = []

    def load(scope: str) -> list[tuple[str, tuple[str, str, str, str], bytes]]:
        calls.append(scope)
        if len(calls) == 1:
            raise sqlite3.OperationalError("disk I/O error")
        return [("ok", tuple(P), vector(1).tobytes())]

    ours = VectorIndex(load)
    with pytest.raises(sqlite3.OperationalError):
        ours.has("s", P)
    ours.remove("s", "ok")  # of what is not read nothing has to be removed
    assert ours.has("s", P)


@FEW
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=60), st.integers(0, 4), st.sampled_from([P, Q]))
def test_one_product_gives_what_two_searches_give(rows: list[tuple[int, bool]], k: int, part: Partition) -> None:
    ours = index()
    for number, (seed, first) in enumerate(rows):  # few seeds: ties are common
        ours.add("s", f"e{number:02d}", P if first else Q, vector(seed))
    ours.add("s", "foreign", Partition("fp", "c", "p", "other"), vector(99))
    found, donor = ours.nearest_and_donor("s", vector(99), k, part)
    assert found == ours.nearest("s", vector(99), k, part)
    assert [donor] == (ours.nearest("s", vector(99), 1, None, "m") or [None])


def test_no_direction_or_no_such_embedder_has_no_donor() -> None:
    ours = index()
    ours.add("s", "e", P, vector(1))
    assert ours.nearest_and_donor("s", np.zeros(8), 3, P) == ([], None)
    assert ours.nearest_and_donor("s", vector(1, dim=9), 3, P) == ([], None)
    assert ours.nearest_and_donor("s", vector(1), 3, P._replace(embedder="other")) == ([], None)
    assert ours.nearest_and_donor("t", vector(1), 3, P) == ([], None)


def test_emptied_scopes_cost_nothing(traced: None) -> None:
    ours, before = index(), taken_bytes()
    for number in range(100):
        for name in ("a", "b"):
            assert ours.add(f"s{number}", name, P._replace(context_key=f"c{number}{name}"), vector(number, dim=384))
    full = taken_bytes() - before
    for number in range(100):
        for name in ("a", "b"):
            ours.remove(f"s{number}", name)
        ours.let_go(f"s{number}")
    assert taken_bytes() - before < full / 50
    assert full < 100 * 20_000, "two vectors take memory for two"


@pytest.mark.parametrize("coded", [False, True])
def test_rows_that_left_give_their_memory_back(coded: bool, traced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if coded:
        monkeypatch.setattr("semcache.store.vectors.CODED_ROWS", 64)
    ours, before = index(), taken_bytes()
    for number in range(2000):
        ours.add("s", f"e{number:04d}", P, vector(number, dim=64))
    full = taken_bytes() - before
    for number in range(1990):
        ours.remove("s", f"e{number:04d}")
    assert taken_bytes() - before < full / 10
    for number in range(1990, 2000):
        assert ours.nearest("s", vector(number, dim=64), 1, P)[0][0] == f"e{number:04d}"
    for number in range(500):
        ours.add("s", f"e{number:04d}", P, vector(number, dim=64))
    assert ours.nearest("s", vector(321, dim=64), 1, P)[0][0] == "e0321"


def test_a_partition_is_forgotten_with_its_last_row(traced: None) -> None:
    """Every turn of a conversation has a context of its own."""
    ours, sizes = index(), []
    for number in range(3000):
        ours.add("s", f"e{number}", P._replace(context_key=f"turn {number}"), vector(number % 50))
        ours.remove("s", f"e{number - 20}")
        if number in (999, 2999):
            sizes.append(taken_bytes())
    assert sizes[1] - sizes[0] < 20_000
    assert not ours.has("s", P._replace(context_key="turn 7"))
    assert ours.nearest("s", vector(7), 3, P._replace(context_key="turn 7")) == []
    assert [name for name, _ in ours.nearest("s", vector(7), 3, P._replace(context_key="turn 2999"))] == ["e2999"]


def test_a_scope_that_was_let_go_is_read_again() -> None:
    rows = {"a": vector(1), "b": vector(2)}
    calls = []

    def load(scope: str) -> list[tuple[str, tuple[str, str, str, str], bytes]]:
        calls.append(scope)
        return [(name, tuple(P), row.tobytes()) for name, row in rows.items()]

    ours = VectorIndex(load)
    assert ours.has("s", P)
    del rows["a"]
    ours.remove("s", "a")
    ours.let_go("s")  # "b" is still there
    assert [name for name, _ in ours.nearest("s", vector(2), 2, P)] == ["b"]
    assert calls == ["s"]
    ours.remove("s", "b")
    assert not ours.has("s", P), "a row that is only passed over is not met again"
    assert calls == ["s"]
    ours.let_go("s")
    ours.let_go("never seen")
    assert [name for name, _ in ours.nearest("s", vector(2), 2, P)] == ["b"]
    assert calls == ["s", "s"]


def test_what_is_added_while_the_scope_is_let_go_is_found() -> None:
    """As `Answers` does it: rows first, the index after."""
    rows: dict[str, bytes] = {}
    ours = VectorIndex(lambda scope: [(name, tuple(P), row) for name, row in list(rows.items())])

    def come_and_go(worker: int) -> None:
        for number in range(200):
            name = f"e{worker}-{number}"
            rows[name] = vector(number).tobytes()
            ours.add("s", name, P, vector(number))
            assert name in [found for found, _ in ours.nearest("s", vector(number), 1000, P)]
            del rows[name]
            ours.remove("s", name)
            ours.let_go("s")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(come_and_go, worker) for worker in range(4)]:
            done.result(timeout=120)
    assert not ours.has("s", None)
