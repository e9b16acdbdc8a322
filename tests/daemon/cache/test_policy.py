"""The threshold serves what is near and worded alike; telling differences are seen."""

from __future__ import annotations

import pytest

from semcache.daemon.cache.features import differences
from semcache.daemon.cache.policies import make_policy
from semcache.daemon.cache.policy import Candidate, OffPolicy, ThresholdPolicy


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [
        ("What is the capital of Australia?", "What is the capital of Austria?", "entity"),
        ("what is the capital of australia", "What is the capital of Austria?", "entity"),
        ("Is a whale a fish?", "Is a whale not a fish?", "negation"),
        ("Why isn't it raining?", "Why is it raining?", "negation"),
        ("When was the 1980 treaty signed?", "When was the 1982 treaty signed?", "number"),
        ("Name two rivers", "Name three rivers", "number"),
        ("the tallest tower", "the longest tower", "scale"),
        ("When did the war begin?", "When did the war end?", "scale"),
        ("Did Ann pay Bob?", "Did Bob pay Ann?", "order"),
        ("I can't remember which is not landlocked", "I can't remember which is landlocked", "negation"),
        ("A beetle is not an insect, right?", "A beetle is an insect, yes or no?", "negation"),
        ("how many centimetres in a metre", "how many millimetres in a metre", "scale"),
        ("What is a male pig called?", "What is a female pig called?", "scale"),
    ],
)
def test_telling_differences(a: str, b: str, first: str) -> None:
    assert differences(a, b)[0] == first
    assert differences(b, a)[0] == first


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is the capital of Australia?", "what's the capital city of australia"),
        ("How do I reset it?", "Could you tell me how to reset it please?"),
        ("Name two rivers", "name 2 rivers"),
        ("I don't know who wrote Hamlet", "who wrote Hamlet"),
        ("", ""),
        ("是谁写的？", "是谁写的？"),
    ],
)
def test_harmless_differences(a: str, b: str) -> None:
    assert differences(a, b) == []


SCOPES = ["user:a"]


def candidate(score: float, prompt: str = "What is rain?") -> Candidate:
    return Candidate("e_1", "user:a", prompt, "water", score)


def test_threshold_serves_at_and_above() -> None:
    policy = ThresholdPolicy(0.95)
    assert policy.decide("what is rain", [candidate(0.95)], SCOPES).serve
    below = policy.decide("what is rain", [candidate(0.9499)], SCOPES)
    assert (below.serve, below.reason) == (False, "policy:threshold")


def test_a_guarded_neighbour_does_not_hide_a_good_one_behind_it() -> None:
    first, second = candidate(0.99, "What is not rain?"), Candidate("e_2", "user:a", "What's rain?", "water", 0.96)
    verdict = ThresholdPolicy(0.95).decide("What is rain?", [first, second], SCOPES)
    assert verdict.serve
    assert verdict.candidate == second


def test_the_first_reason_is_told() -> None:
    verdict = ThresholdPolicy(0.95).decide("What is rain?", [candidate(0.99, "What is not rain?")], SCOPES)
    assert (verdict.serve, verdict.reason) == (False, "policy:negation")
    assert ThresholdPolicy(0.95).decide("x", [], SCOPES).reason == "no_candidate"


def test_off_never_serves() -> None:
    assert not OffPolicy().decide("x", [candidate(1.0)], SCOPES).serve
    assert make_policy("off", threshold=0.9).name == "off"
