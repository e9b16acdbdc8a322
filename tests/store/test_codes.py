"""One byte a number: the bound holds, and searches through codes give what exact ones give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semcache.store import vectors
from semcache.store.codes import Codes, can_code
from semcache.store.vectors import Partition, VectorIndex

P, Q = Partition("fp", "c", "p", "m"), Partition("fp", "other", "p", "m")

pytestmark = pytest.mark.skipif(not can_code(384), reason="this torch has no product of bytes")


def units(num: int, dim: int, seed: int, spread: float = 1.0) -> np.ndarray:
    """Unit vectors around one direction; the smaller the spread, the closer together."""
    rng = np.random.default_rng(seed)
    rows = np.ones(dim) / np.sqrt(dim) + spread * rng.standard_normal((num, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every search goes through codes."""
    monkeypatch.setattr(vectors, "CODED_ROWS", 1)


@given(st.integers(1, 200), st.sampled_from([64, 128, 384]), st.integers(0, 99), st.sampled_from([0.01, 0.3, 3.0]))
@settings(max_examples=60, deadline=None)
def test_no_score_is_farther_off_than_the_bound(num: int, dim: int, seed: int, spread: float) -> None:
    rows, query = units(num, dim, seed, spread), units(1, dim, seed + 1, spread)[0]
    codes = Codes(dim)
    codes.put(0, rows)
    approximate, slack = codes.scores(query, num)
    assert np.abs(approximate - rows @ query).max() <= slack


@given(
    st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.booleans()), min_size=1, max_size=150), st.integers(0, 9)
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_the_nearest_are_those_of_an_exact_search(coded: None, steps: list[tuple[int, bool, bool]], seed: int) -> None:
    """After any adds, replacements and removals, also of vectors that codes can hardly tell apart."""
    pool = units(200, 64, seed, 0.02)
    ours = VectorIndex(lambda scope: [])
    oracle: dict[str, tuple[Partition, np.ndarray]] = {}
    for step, (number, first, removes) in enumerate(steps):
        name = f"e{number:03d}"
        if removes:
            ours.remove("s", name)
            oracle.pop(name, None)
        else:
            vector, partition = pool[(number * 7 + step) % 200], P if first else Q
            assert ours.add("s", name, partition, vector)
            oracle[name] = (partition, vector)
    query = pool[-1]
    for partition in (None, P, Q):
        exact = {name: float(v @ query) for name, (part, v) in oracle.items() if partition in (None, part)}
        found = ours.nearest("s", query, 5, partition)
        assert [score for _, score in found] == pytest.approx(sorted(exact.values(), reverse=True)[:5], abs=1e-6)
        assert all(exact[name] == pytest.approx(score, abs=1e-6) for name, score in found)


def test_codes_begin_where_memory_limits_a_search() -> None:
    ours = VectorIndex(lambda scope: [])
    rows = units(vectors.CODED_ROWS + 10, 64, 0)
    for number, row in enumerate(rows):
        ours.add("s", f"e{number:05d}", P, row)
    for at in (0, 5_000, len(rows) - 1):
        assert ours.nearest("s", rows[at], 1, P)[0][0] == f"e{at:05d}"
    ours.remove("s", "e00000")
    assert ours.nearest("s", rows[0], 1, P)[0][0] != "e00000"


def test_rows_of_an_odd_length_are_searched_exactly() -> None:
    assert not can_code(100)
    ours = VectorIndex(lambda scope: [])
    rows = units(vectors.CODED_ROWS, 100, 0)
    for number, row in enumerate(rows):
        ours.add("s", f"e{number:05d}", P, row)
    assert ours.nearest("s", rows[7], 1, P)[0][0] == "e00007"
