"""Features are named, finite, and the same whichever wording comes first."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.cache.features import (
    DIFFERENCES,
    FEATURES,
    _read,
    compare,
    contradicts,
    differences,
    in_order,
    measure,
    normalised,
)

TEXTS = st.text(max_size=60)


@given(TEXTS, TEXTS)
def test_the_order_of_two_wordings_does_not_matter(a: str, b: str) -> None:
    assert compare(a, b) == compare(b, a)
    assert differences(a, b) == differences(b, a)


@given(TEXTS, st.lists(st.tuples(TEXTS, TEXTS, st.floats(-1, 1)), max_size=5))
def test_every_feature_is_there_and_finite(prompt: str, candidates: list[tuple[str, str, float]]) -> None:
    for features in measure(prompt, candidates, [None] * len(candidates)):
        assert set(features) == set(FEATURES)
        assert all(math.isfinite(value) for value in in_order(features))


@given(TEXTS)
def test_a_wording_does_not_differ_from_itself(text: str) -> None:
    found = compare(text, text)
    assert differences(text, text) == []
    assert [found[name] for name in DIFFERENCES] == [0.0] * len(DIFFERENCES)
    assert (found["overlap"], found["trigrams"], found["function"]) == (1.0, 1.0, 1.0)


def test_margin_and_agreement_look_at_the_other_answers() -> None:
    first, second, third = measure(
        "What is rain?",
        [("What's rain?", "water", 0.95), ("Define rain", "Water!", 0.9), ("What is hail?", "ice", 0.8)],
        [None, 0.5, None],
    )
    assert first["margin"] == pytest.approx(0.15)
    assert second["margin"] == pytest.approx(0.1)
    assert third["margin"] == pytest.approx(-0.15)
    assert (first["agreement"], third["agreement"]) == (0.25, 0.0)
    assert first["backed"] == pytest.approx(0.15 * 0.25)
    assert (second["regret"], second["regret_known"], first["regret_known"]) == (0.5, 1.0, 0.0)


def test_long_answers_are_compared_without_being_read() -> None:
    """Of several hundred words each, that would take longer than a decision may."""
    long = "It falls from clouds. " * 40
    for answers, margin, agreement in (
        ((long, long), 0.2, 0.25),
        ((long, long.upper()), 0.05, 0.0),
        (("It falls.", "it falls"), 0.2, 0.25),
    ):
        candidates = [("What's rain?", answers[0], 0.95), ("Define rain", answers[1], 0.9)]
        found = measure("What is rain?", candidates, [None, None])[0]
        assert (found["margin"], found["agreement"]) == (pytest.approx(margin), agreement)


def test_the_same_question_in_two_scopes_is_one_witness() -> None:
    twice = [("What's rain?", "water", 0.95), ("what's rain", "water", 0.95)]
    assert [features["agreement"] for features in measure("rain?", twice, [None, None])] == [0.0, 0.0]


def test_without_a_rival_the_margin_is_the_widest() -> None:
    assert measure("a", [("b", "same", 0.4)], [None])[0]["margin"] == 0.2


def test_an_absent_feature_is_0_and_an_unknown_one_is_left_out() -> None:
    assert in_order({"distance": 2.0, "of another version": 5.0}) == [2.0] + [0.0] * (len(FEATURES) - 1)


def test_normalised_forgets_case_and_punctuation() -> None:
    assert normalised("  What IS rain?! ") == "what is rain"
    assert normalised("???") == "???"


WORDS = st.lists(st.sampled_from("not Paris paris two 2 3rd don't isn’t London I what is".split()), max_size=6)


@given(TEXTS | WORDS.map(" ".join), TEXTS | WORDS.map(" ".join))
def test_answers_contradict_each_other_as_wordings_differ(a: str, b: str) -> None:
    assert contradicts(a, b) == bool({"number", "negation", "entity"} & set(differences(a, b)))


def test_nothing_of_an_answer_is_remembered() -> None:
    _read.cache_clear()
    normalised.cache_clear()
    assert contradicts("It was built in 1889.", "It was built in 1899.")
    assert (_read.cache_info().currsize, normalised.cache_info().currsize) == (0, 0)
    measure("What is rain?", [("What's rain?", "a long answer", 0.95), ("Define rain", "another", 0.9)], [None, None])
    assert (_read.cache_info().currsize, normalised.cache_info().currsize) == (3, 2)
