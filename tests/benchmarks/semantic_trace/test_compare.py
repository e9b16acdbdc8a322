"""Ratios at equal measured error, on runs whose counts are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.semantic_trace.arms import Budget
from benchmarks.semantic_trace.compare import compare, wrong_pairs
from benchmarks.semantic_trace.run import NEVER, Run

NUM = 10_000


def counted(arm: str, budget: Budget, hits: int, wrong: int, seed: int = 0, later_wrong: int = 0) -> Run:
    """A run with hits spread evenly; `wrong` of them in the first half, `later_wrong` in the second."""
    served = np.full(NUM, NEVER)
    served[np.linspace(1, NUM - 1, hits).astype(int)] = 0
    is_wrong = np.zeros(NUM, bool)
    at = np.flatnonzero(served != NEVER)
    is_wrong[at[at < NUM // 2][:wrong]] = True
    is_wrong[at[at >= NUM // 2][:later_wrong]] = True
    flags = np.zeros(NUM, bool)
    return Run(
        arm, budget, seed, served, np.full(NUM, 0.9), is_wrong, flags, flags, flags, np.zeros(NUM), np.zeros(NUM),
        [""] * NUM,
    )  # fmt: skip


def ours(*points: tuple[float, int, int, int]) -> list[Run]:
    return [counted("semcache", Budget(b, 0.5), hits, wrong, 0, later) for b, hits, wrong, later in points]


def test_vcache_is_met_at_its_error() -> None:
    runs = [*ours((0.01, 400, 50, 0), (0.05, 800, 150, 0)), counted("vcache", Budget(0.01), 200, 100)]
    (row,) = compare(runs, (0.01, 0.05))
    assert row["against"] == "vcache"
    assert row["error"] == pytest.approx(0.01)
    assert row["semcache_hits"] == pytest.approx(600)
    assert row["ratio"] == pytest.approx(3.0)
    assert row["counted"]
    assert not row["at_our_largest_error"]


def test_below_our_first_point_the_line_starts_at_nothing() -> None:
    runs = [*ours((0.01, 400, 100, 0)), counted("vcache", Budget(0.01), 50, 25)]
    (row,) = compare(runs, (0.01,))
    assert row["semcache_hits"] == pytest.approx(100)
    assert not row["counted"]


def test_beyond_our_largest_error_the_others_curve_is_read() -> None:
    runs = [*ours((0.01, 400, 50, 0)), counted("vcache", Budget(0.01), 200, 100)]
    (row,) = compare(runs, (0.01,))
    assert row["at_our_largest_error"]
    assert row["error"] == pytest.approx(0.005)
    assert row["hits"] == pytest.approx(100)
    assert row["ratio"] == pytest.approx(4.0)


def test_the_bound_on_hits_does_not_enter() -> None:
    strict = counted("semcache", Budget(0.01, 0.02), 5000, 0)
    assert compare([strict, counted("vcache", Budget(0.01), 200, 100)], (0.01,)) == []


def test_the_threshold_is_chosen_on_the_first_half() -> None:
    runs = [
        *ours((0.01, 500, 0, 50)),
        counted("static:0.80", Budget(), 1000, wrong=60, later_wrong=10),
        counted("static:0.90", Budget(), 600, wrong=40, later_wrong=50),
        counted("static:0.95", Budget(), 300, wrong=0, later_wrong=0),
    ]
    row = next(row for row in compare(runs, (0.01,)) if row["against"] == "static:past")
    assert row["thresholds"] == ["static:0.90"]  # 40 of 5,000 is within 1 %; 60 is not
    assert row["error"] == pytest.approx(0.01)
    assert row["hits"] == pytest.approx(300, abs=2)
    assert row["ratio"] == pytest.approx(250 / 300, abs=0.01)


def test_means_over_the_seeds() -> None:
    vcache = [counted("vcache", Budget(0.01), hits, 50, seed) for seed, hits in enumerate((100, 300))]
    runs = [*ours((0.01, 400, 100, 0)), *vcache]
    (row,) = compare(runs, (0.01,))
    assert row["hits"] == pytest.approx(200)
    assert row["semcache_hits"] == pytest.approx(200)


def test_wrong_pairs_are_places() -> None:
    made = counted("static:0.90", Budget(), 10, wrong=2)
    assert [(stored, score) for _, stored, score in wrong_pairs(made)] == [(0, 0.9), (0, 0.9)]
