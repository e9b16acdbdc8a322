"""Bounds cover what they claim, tests err as rarely as they say, whenever they are looked at."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from semcache.daemon.cache.bounds import (
    DriftTest,
    certifies,
    log_evidence_below,
    most_wrong,
    num_clean,
    wilson,
)

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
BUDGETS = st.sampled_from([0.005, 0.01, 0.02, 0.05, 0.5])


@given(COUNTS)
def test_wilson_holds_the_rate_and_never_leaves_0_to_1(counts: tuple[int, int]) -> None:
    wrong, num = counts
    low, high = wilson(wrong, num) or (9.0, 9.0)
    assert 0 <= low <= wrong / num <= high <= 1


def test_wilson_of_known_counts() -> None:
    assert wilson(10, 1000) == pytest.approx((0.00544, 0.01831), abs=1e-5)
    assert wilson(0, 0) is None


@given(st.integers(1, 20_000), BUDGETS)
def test_most_wrong_is_the_edge_of_wilsons_bound(num: int, budget: float) -> None:
    edge = int(most_wrong(num, budget))
    if most_wrong(num, budget) >= 0:
        assert (wilson(edge, num) or (0, 1))[1] <= budget + 1e-9
    if 0 <= edge < num:
        assert (wilson(edge + 1, num) or (0, 0))[1] > budget


@given(COUNTS, BUDGETS)
def test_evidence_falls_with_a_wrong_label_and_rises_with_a_right_one(counts: tuple[int, int], budget: float) -> None:
    wrong, num = counts
    now = log_evidence_below(wrong, num, budget)
    assert log_evidence_below(wrong, num + 1, budget) > now
    assert log_evidence_below(wrong + 1, num + 1, budget) < now


def test_two_percent_takes_about_160_clean_labels() -> None:
    assert 148 < num_clean(0.02) < 162
    assert certifies(0, 162, 0.02)
    assert not certifies(0, 140, 0.02)
    assert not certifies(1, 162, 0.02)


@pytest.mark.parametrize("budget", [0.02, 0.1])
def test_a_rate_at_the_budget_is_certified_falsely_in_one_run_of_twenty_at_most(budget: float) -> None:
    draw, false = random.Random(7), 0
    for _ in range(300):
        wrong = 0
        for num in range(1, 800):
            wrong += draw.random() < budget
            if num >= num_clean(budget) and certifies(wrong, num, budget):
                false += 1
                break
    assert false <= stats.binom.ppf(0.99, 300, 0.05), f"{false} of 300 runs were certified falsely"


def test_a_rate_well_below_the_budget_is_certified() -> None:
    draw = random.Random(3)
    wrong = sum(draw.random() < 0.005 for _ in range(1500))
    assert certifies(wrong, 1500, 0.02)


def runs_that_alarm(rate: float, budget: float, noticed: float, num_runs: int, steps: int) -> list[int]:
    """When each run reported drift, in steps."""
    found = []
    for seed in range(num_runs):
        draw, test = random.Random(seed), DriftTest(budget, every=50)
        for step in range(steps):
            wrong = draw.random() < rate and draw.random() < noticed
            if test.step(wrong, noticed):
                found.append(step)
                break
    return found


@pytest.mark.parametrize("noticed", [1.0, 0.1])
def test_drift_is_rarely_reported_at_the_budget(noticed: float) -> None:
    alarms = runs_that_alarm(0.05, 0.05, noticed, num_runs=100, steps=1500)
    assert len(alarms) <= 4, f"{len(alarms)} of 100 runs reported a drift that was none"


@pytest.mark.parametrize(("rate", "noticed", "within"), [(0.2, 1.0, 120), (0.2, 0.2, 600)])
def test_drift_is_noticed(rate: float, noticed: float, within: int) -> None:
    alarms = runs_that_alarm(rate, 0.05, noticed, num_runs=40, steps=2000)
    assert len(alarms) == 40
    assert sorted(alarms)[20] < within, sorted(alarms)


def test_a_good_past_hides_no_bad_present() -> None:
    draw, test = random.Random(1), DriftTest(0.02, every=50)
    assert not any(test.step(draw.random() < 0.002) for _ in range(3000))
    bad = next(step for step in range(1000) if test.step(draw.random() < 0.15))
    assert bad < 150


def test_a_drift_test_goes_on_where_it_was_saved() -> None:
    draw, test = random.Random(5), DriftTest(0.02, every=50)
    for _ in range(130):
        test.step(draw.random() < 0.02, 0.5)
    other = DriftTest(0.02, every=50)
    other.restore(test.dump())
    assert other.log_evidence() == pytest.approx(test.log_evidence())
    for wrong in (False, True, False, True):
        assert other.step(wrong) == test.step(wrong)
    assert other.log_evidence() == pytest.approx(test.log_evidence())
    with pytest.raises(ValueError, match="not a state"):
        other.restore({"num": 1, "num_starts": 1, "wagers": [[0.0]]})


def test_wagers_of_long_ago_leave_and_the_newest_stay() -> None:
    draw, test = random.Random(2), DriftTest(0.02, every=50)
    for _ in range(5000):
        test.step(draw.random() < 0.01)
    state = test.dump()
    assert (state["num_starts"], len(state["wagers"])) == (100, 8)
    bad = next(step for step in range(1000) if test.step(draw.random() < 0.15))
    assert bad < 150
