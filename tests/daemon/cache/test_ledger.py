"""Counts by predicted risk, and how far the two budgets reach."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.cache.ledger import ALL_AUDITED, LABELS_TO_RETURN, NUM_CELLS, Budgets, Ledger, cell_of, top_of
from semcache.daemon.cache.status import status_of


def labelled(budgets: Budgets, cell: int, num: int, error: float, seed: int = 0) -> Ledger:
    """A ledger after `num` requests of one cell that were not served."""
    ledger, draw = Ledger(budgets), random.Random(seed)
    for _ in range(num):
        ledger.request(cell)
        ledger.pass_over(0.1)
        ledger.label(cell, draw.random() >= error)
    return ledger


@given(st.floats(0, 1))
def test_a_risk_lies_in_its_cell(risk: float) -> None:
    cell = cell_of(risk)
    assert 0 <= cell <= NUM_CELLS
    if cell < NUM_CELLS:
        assert risk <= top_of(cell) * (1 + 1e-9)
    if 0 < cell < NUM_CELLS:
        assert risk >= top_of(cell - 1) * (1 - 1e-9)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_risk_never_lies_in_a_safer_cell(a: float, b: float) -> None:
    assert cell_of(min(a, b)) <= cell_of(max(a, b))


def test_clean_labels_reach_as_far_as_they_lie() -> None:
    ledger = labelled(Budgets(0.05, 0.02), cell=5, num=400, error=0.0)
    last, _ = ledger.limit()
    assert last >= 5
    assert ledger.refusal(5) is None
    assert status_of(ledger).state == "serving"


def test_150_clean_labels_are_not_enough_for_one_percent_of_hits() -> None:
    ledger = labelled(Budgets(0.05, 0.01), cell=5, num=150, error=0.0)
    assert ledger.refusal(5) == "policy:evidence"
    assert "not enough evidence" in status_of(ledger).words


def test_the_request_budget_must_have_room() -> None:
    ledger = labelled(Budgets(0.005, 0.5), cell=20, num=300, error=0.2)
    assert ledger.refusal(20) == "policy:budget"
    assert status_of(ledger).budget_left == 0.0


def test_the_audited_count_for_more_than_the_expected() -> None:
    ledger = labelled(Budgets(0.05, 0.5), cell=20, num=2000, error=0.2)
    ledger.serve(20, audit=True, audit_rate=0.1)
    expected = ledger.expected_wrong()
    assert expected == pytest.approx(0.2, abs=0.05)
    ledger.audit(20, True, 0.1)
    assert ledger.expected_wrong() == pytest.approx(0.0, abs=1e-6)
    ledger.serve(20, audit=True, audit_rate=0.1)
    ledger.audit(20, False, 0.1)
    assert ledger.expected_wrong() == pytest.approx(1.0, abs=1e-6)


def test_what_was_spent_stays_spent_when_serving_is_switched_off() -> None:
    ledger = labelled(Budgets(0.05, 0.02), cell=3, num=3000, error=0.0)
    num_wrong = 0
    while not ledger.suspended:
        ledger.request(3)
        ledger.serve(3, audit=True, audit_rate=0.1)
        ledger.audit(3, False, 0.1)
        num_wrong += 1
        assert num_wrong < 20
    assert ledger.refusal(0) == "policy:suspended"
    assert ledger.expected_wrong() == pytest.approx(num_wrong, abs=0.1)
    assert ledger.audits_to_go == ALL_AUDITED
    for _ in range(LABELS_TO_RETURN + 200):
        ledger.request(3)
        ledger.label(3, True)
    assert ledger.refusal(3) in (None, "policy:budget")
    assert not ledger.suspended


def test_a_ledger_goes_on_where_it_was_saved() -> None:
    ledger = labelled(Budgets(0.05, 0.02), cell=4, num=500, error=0.004)
    other = Ledger(Budgets(0.05, 0.02))
    other.restore(json.loads(json.dumps(ledger.dump())))
    assert other.limit() == ledger.limit()
    assert status_of(other) == status_of(ledger)
    assert other.request_test.log_evidence() == pytest.approx(ledger.request_test.log_evidence())


def test_other_budgets_keep_the_counts_and_start_other_tests() -> None:
    ledger = labelled(Budgets(0.05, 0.02), cell=4, num=500, error=0.0)
    stricter = Ledger(Budgets(0.001, 0.001))
    stricter.restore(ledger.dump())
    assert stricter.labels == pytest.approx(ledger.labels)
    assert stricter.limit()[0] == -1
    assert stricter.request_test.num == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"labels": [0.0]},
        {"labels": "many"},
        {"requests": -1},
        {"requests": float("inf")},
        {"suspended": 3},
        {"num_served": "7"},
        {"tests": []},
    ],
)
def test_damage_is_refused(damage: dict[str, object]) -> None:
    dumped = labelled(Budgets(0.05, 0.02), cell=4, num=20, error=0.0).dump()
    with pytest.raises((ValueError, TypeError)):
        Ledger(Budgets(0.05, 0.02)).restore({**dumped, **damage})
