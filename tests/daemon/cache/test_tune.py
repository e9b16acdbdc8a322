"""Replayed decisions agree with the live run, and other budgets with what they would have done."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from semcache.daemon.cache.evidence import EvidenceBook
from semcache.daemon.cache.tune import replay
from semcache.daemon.cache.verified import VerifiedPolicy
from tests.daemon.cache.worlds import SCOPE, World


@dataclass
class Row:
    """What the store keeps of one decision."""

    request_id: str
    p_correct: float | None
    served: bool
    label: bool | None
    source: str | None
    reason: str = "similar"
    scope: str = SCOPE


def recorded(max_error: float, max_hit_error: float, num: int = 2500, error: float = 0.02, seed: int = 3) -> list[Row]:
    policy = VerifiedPolicy(EvidenceBook(), max_error=max_error, max_hit_error=max_hit_error, audit_rate=0.05, seed=4)
    world, rows = World(error, seed=seed), []
    for i in range(num):
        prompt, candidate, same = world.ask()
        verdict = policy.decide(prompt, [candidate], [SCOPE])
        [item] = verdict.considered
        known = verdict.audit or not verdict.serve
        source = ("audit" if verdict.serve else "equivalence") if known else None
        if source == "audit" or source == "equivalence":
            policy.learn(prompt, item, same, source=source, served=verdict.serve)
        rows.append(Row(f"req_{i}", item.p_correct, verdict.serve, same if known else None, source, verdict.reason))
    return rows


@pytest.mark.parametrize("budgets", [(0.05, 0.05), (0.03, 0.5), (0.01, 0.02)])
def test_the_budgets_in_force_would_have_served_what_they_served(budgets: tuple[float, float]) -> None:
    rows = recorded(*budgets)
    found = replay(rows, max_error=budgets[0], max_hit_error=budgets[1])
    assert found.requests == len(rows)
    assert found.served == sum(row.served for row in rows)


def test_looser_budgets_serve_more() -> None:
    rows = recorded(0.02, 0.05)
    served = [replay(rows, max_error=b, max_hit_error=h).served for b, h in ((0.001, 0.01), (0.02, 0.05), (0.1, 0.2))]
    assert served == sorted(served)
    assert served[0] == 0
    assert served[-1] > served[1]


def test_the_estimate_covers_the_truth() -> None:
    intervals = []
    for seed in range(6):
        found = replay(recorded(0.03, 0.5, 1200, 0.04, seed), max_error=0.1, max_hit_error=0.2)
        assert "would have served" in found.words
        intervals.append(found.ci95 or (1.0, 0.0))
    assert sum(low <= 0.04 <= high for low, high in intervals) >= 5, intervals


def test_of_one_request_the_likeliest_candidate_counts_and_a_served_one_before_it() -> None:
    rows = [
        Row("a", 0.2, False, False, "equivalence"),
        Row("a", 0.9, False, True, "draft"),
        Row("b", None, False, None, None),
    ]
    found = replay(rows, max_error=0.05, max_hit_error=0.05)
    assert (found.requests, found.served, found.rate) == (2, 0, None)
    assert replay([], max_error=0.1, max_hit_error=0.1).words == "no recorded decisions"
