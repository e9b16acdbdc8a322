"""Text rules for correct answers, and the interval of a rate."""

from __future__ import annotations

import pytest

from semcache.replay.judge import agrees, f1, normalised, wilson95


def test_normalised_drops_case_punctuation_articles_and_blanks():
    assert normalised("  The  “Milky” Way. ") == ["milky", "way"]
    assert normalised("A") == ["a"]


@pytest.mark.parametrize(("judge", "answer", "reference", "same"), [
    ("exact", "the femur.", "Femur", True),
    ("exact", "It is the femur", "femur", False),
    ("contains", "It is the femur, I think", "The femur.", True),
    ("contains", "There is nothing", "no", False),
    ("contains", "10", "1", False),
    ("contains", "", "x", False),
    ("contains", "x", "", False),
    ("f1", "Mount Everest", "mount everest", True),
    ("f1", "Mount Everest in Nepal", "mount everest", False),
    ("none", "x", "x", None),
])  # fmt: skip
def test_rules(judge, answer, reference, same):
    assert agrees(judge, answer, [reference]) is same


def test_any_accepted_answer_is_enough_and_none_is_unchecked():
    assert agrees("exact", "b", ["a", "b"]) is True
    assert agrees("exact", "b", []) is None


def test_f1_counts_repeated_words_once_each():
    assert f1("yes yes yes", "yes") == pytest.approx(0.5)
    assert f1("", "") == 1.0


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (3, 246, 0.0042, 0.0352)]
)
def test_wilson_interval(hits, n, low, high):
    interval = wilson95(hits, n)
    assert interval == pytest.approx((low, high), abs=1e-4)


def test_no_observations_have_no_interval():
    assert wilson95(0, 0) is None
