"""Near misses, drift and repeats, counted on made-up questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.semantic_trace import drift, near_miss, zipf
from benchmarks.semantic_trace.arms import Budget
from benchmarks.semantic_trace.campaign import Seed, Settings
from benchmarks.semantic_trace.neighbours import Ranks
from benchmarks.semantic_trace.run import NEVER, Run
from benchmarks.semantic_trace.trace import Pair, Question
from semcache.daemon.cache.policy import Candidate, ThresholdPolicy, Verdict
from tests.benchmarks.semantic_trace import made_up

BUDGET = Budget(0.01, 0.5)


def flags(*values: bool) -> np.ndarray:
    return np.array(values, dtype=bool)


def run_of(served: list[int], wrong: np.ndarray, offered: np.ndarray, reasons: list[str] | None = None) -> Run:
    num = len(served)
    none = np.zeros(num, bool)
    return Run(
        "semcache", BUDGET, 0, np.array(served), np.zeros(num), wrong, offered, none, np.array(served) != NEVER,
        np.zeros(num), np.zeros(num), reasons or [""] * num,
    )  # fmt: skip


def test_near_misses_are_counted_by_kind() -> None:
    made = run_of([0, 1, NEVER, 2, NEVER], flags(1, 0, 0, 1, 0), flags(0, 0, 1, 0, 1))
    counted = near_miss.count(made, [False, True, True, True, False])
    assert counted == {"pairs": 2, "served_wrongly": 1, "paraphrases": 3, "served": 2, "draft_offered": 1}


def test_what_a_person_said_about_a_pair_comes_before_its_classes() -> None:
    pairs = [Pair("a", "b", True), Pair("a", "c", False), Pair("a", "d", False), Pair("e", "f", True)]
    stored, asked, is_paraphrase = near_miss.label(pairs, {"a": "1", "b": "7", "c": "1", "d": "4"})
    assert [question.text for question in stored] == ["a", "e"]
    assert is_paraphrase == [True, False, False, True]
    a, e = stored[0].class_id, stored[1].class_id
    assert [question.class_id == a for question in asked] == [True, False, False, False]
    assert asked[2].class_id == "4"
    assert asked[3].class_id == e != a


class NearestPolicy:
    """Serve whatever is nearest."""

    name = "nearest"

    def decide(self, prompt: str, candidates: Sequence[Candidate], scopes: Sequence[str]) -> Verdict:
        return Verdict(bool(candidates), "similar", candidates[0] if candidates else None)


def test_a_policy_that_serves_everything_serves_near_misses() -> None:
    known = made_up.questions(40, 3)
    pairs = made_up.pairs(known, 20)
    found = near_miss.measure(pairs, known, known[:30], 20, made_up.embed, lambda budget, seed: NearestPolicy(), 0)
    fresh = found["states"][0]
    assert fresh["served"] == fresh["paraphrases"] > 0
    assert fresh["served_wrongly"] > 0
    assert found["served_wrongly"] / found["pairs"] >= fresh["served_wrongly"] / fresh["pairs"]
    assert found["worst"] in {state["state"] for state in found["states"]}
    none = near_miss.measure(pairs, known, known[:30], 20, made_up.embed, lambda budget, seed: ThresholdPolicy(2.0), 0)
    assert none["served_wrongly"] == none["served"] == 0
    assert none["draft_offered"] == none["paraphrases"]


@pytest.mark.parametrize(
    ("wrong", "window", "expected"),
    [
        ([0, 0, 0, 0], 2, 0),
        ([1, 0, 0, 0, 0, 0], 2, 2),  # the one window with the error ends after the second request
        ([0, 1, 0, 0, 0, 0], 2, 3),
        ([0, 0, 0, 0, 0, 1], 2, None),
        ([1, 0], 10, None),  # shorter than a window: all of it is one
        ([], 10, 0),
    ],
)
def test_the_way_back_under_the_budget(wrong: list[int], window: int, expected: int | None) -> None:
    assert drift.back_under([bool(x) for x in wrong], 0.25, window) == expected


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 20), st.floats(0.0, 1.0))
def test_after_the_way_back_no_window_is_over(wrong: list[bool], window: int, max_error: float) -> None:
    back = drift.back_under(wrong, max_error, window)
    if back is not None and wrong:
        size = min(window, len(wrong))
        later = [wrong[end - size : end] for end in range(max(size, back + 1), len(wrong) + 1)]
        assert all(sum(part) <= max_error * size + 1e-9 for part in later)


def test_drift_says_when_serving_stopped() -> None:
    reasons = ["similar", "policy:suspended", "similar", "similar", "policy:suspended", "policy:suspended"]
    made = run_of([0, NEVER, 1, 1, NEVER, NEVER], flags(0, 0, 1, 1, 0, 0), flags(0, 1, 0, 0, 1, 1), reasons)
    row = drift.row(made, 2, window=2)
    assert row["before"] == {"requests": 2, "served": 1, "wrong": 0, "audits": 1}
    assert row["after"] == {"requests": 4, "served": 2, "wrong": 2, "audits": 2}
    assert (row["fallback_after_requests"], row["fallback_after_audits"]) == (2, 2)
    assert (row["back_after_requests"], row["back_after_audits"]) == (3, 2)


def test_the_second_half_is_made_of_other_classes_and_mostly_of_near_duplicates() -> None:
    known = made_up.questions(300, 3)
    pairs = [Pair(a.text, b.text, False) for a, b in zip(known[::7], known[3::7], strict=False)]
    stream, change = drift.drifted(known, pairs, Settings(limit=100, seeds=1), 0)
    assert change == 50
    assert len(stream) == 100
    assert len(set(stream)) == 100
    assert not {q.class_id for q in stream[:change]} & {q.class_id for q in stream[change:]}
    in_pairs = {text for pair in pairs for text in (pair.a, pair.b)}
    assert sum(q.text in in_pairs for q in stream[change:]) >= 0.7 * 50


def test_questions_in_many_wordings_are_the_largest_classes() -> None:
    known = [Question(f"{size} {n}", str(size)) for size in range(1, 8) for n in range(size)]
    found = drift.many_wordings(known, 13, 0)
    assert {question.class_id for question in found} == {"6", "7"}
    assert found != sorted(found, key=lambda question: question.text)


def test_drift_is_measured_with_and_without_free_labels() -> None:
    known = made_up.questions(60, 3)
    pairs = [Pair(a.text, b.text, False) for a, b in zip(known[::7], known[3::7], strict=False)]
    settings = Settings(limit=60, seeds=1)
    rows = drift.measure(known, pairs, settings, [BUDGET], made_up.embed, lambda budget, seed: ThresholdPolicy(0.9), 0)
    assert [row["labels"] for row in rows] == ["all", "audits"]
    assert rows[0]["change_at"] == 30
    assert rows[0]["before"] == rows[1]["before"]


def seed_of(num: int) -> Seed:
    stream = [Question(f"class {n // 3} wording {n}", str(n // 3)) for n in range(num)]
    return Seed(0, stream, Ranks(made_up.embed([question.text for question in stream])))


def test_an_identical_prompt_is_always_a_hit_once_it_was_computed() -> None:
    rows = zipf.measure(seed_of(90), [BUDGET], lambda budget, seed: ThresholdPolicy(2.0))
    for row in rows:
        assert row["repeats_hit"] == row["repeats"] == row["exact"] > 0
        assert row["semantic"] == row["wrong"] == row["by_alias"] == 0


def test_popular_questions_come_again() -> None:
    asked = zipf.replay(100, 1000, 0)
    assert asked == zipf.replay(100, 1000, 0)
    assert len(asked) == 1000
    most = max(asked.count(place) for place in set(asked))
    assert most > 100  # a uniform draw gives about 10
