"""What the table claims about bounds, on runs whose counts are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.semantic_trace import report
from benchmarks.semantic_trace.arms import Budget
from benchmarks.semantic_trace.campaign import Seed, reference
from benchmarks.semantic_trace.neighbours import Ranks
from benchmarks.semantic_trace.run import NEVER, Run
from benchmarks.semantic_trace.trace import Question


def counted(budget: Budget, hits: int, wrong: int, num: int = 10_000, seed: int = 0) -> Run:
    served = np.full(num, NEVER)
    served[:hits] = 0
    flags = np.zeros(num, bool)
    return Run(
        "semcache", budget, seed, served, np.zeros(num), np.arange(num) < wrong, flags, flags, flags, np.ones(num),
        np.ones(num), [""] * num,
    )  # fmt: skip


def line(*runs: Run) -> str:
    return list(report.arms(runs))[3]


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [(70, "yes"), (95, "measured"), (101, "NO")],  # Wilson's upper end of 70 in 10,000 is 0.88 %, of 95 it is 1.16 %
)
def test_a_bound_holds_with_its_upper_end(wrong: int, verdict: str) -> None:
    assert f"{verdict} " in line(counted(Budget(0.01, 0.5), 1000, wrong))
    others = {"yes", "measured", "NO"} - {verdict}
    assert not others & set(line(counted(Budget(0.01, 0.005), 150, wrong)).split())


def test_one_seed_over_the_budget_is_enough() -> None:
    good, bad = counted(Budget(0.01, 0.5), 1000, 10), counted(Budget(0.01, 0.5), 1000, 110, seed=1)
    assert "NO" in line(good, bad).split()


def test_few_hits_claim_nothing_about_hits() -> None:
    assert "abstained" in line(counted(Budget(0.01, 0.02), 199, 0))
    assert "abstained" not in line(counted(Budget(0.01, 0.02), 200, 0))


def test_the_row_counts() -> None:
    row = counted(Budget(0.01, 0.02), 400, 4).row()
    assert (row["served"], row["wrong"], row["wrong_per_request"], row["wrong_per_hit"]) == (400, 4, 0.0004, 0.01)
    assert row["wrong_per_hit_ci95"] == pytest.approx((0.0039, 0.0254), abs=1e-4)
    empty = counted(Budget(), 0, 0).row()
    assert (empty["wrong_per_hit"], empty["wrong_per_hit_ci95"]) == (None, None)


def test_the_reference_stores_every_question() -> None:
    """The third is nearest to the second, which a cache that stores only misses would not have."""
    vectors = np.array([[1.0, 0.0], [0.96, 0.28], [0.8, 0.6]], dtype=np.float32)
    stream = [Question("a", "1"), Question("b", "1"), Question("c", "2")]
    rows = reference([Seed(0, stream, Ranks(vectors))], (0.9, 0.95, 0.99))
    assert [row["served_share"] for row in rows] == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert [row["wrong_per_request"] for row in rows] == pytest.approx([1 / 3, 0.0, 0.0])
    assert rows[2]["wrong_per_hit"] is None
