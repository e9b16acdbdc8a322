"""The shipped prior covers every feature and is sane."""

from __future__ import annotations

import json

import pytest

from semcache.daemon.cache.calibration import Calibration, Offset, np
from semcache.daemon.cache.features import DIFFERENCES, FEATURES, measure
from semcache.daemon.cache.prior import PATH, PRIOR, read_prior


def chance(asked: str, stored: str, score: float) -> float:
    [features] = measure(asked, [(stored, "answer", score)], [None])
    row = np.array([PRIOR.standard(features)])
    return Calibration(PRIOR.weights, PRIOR.variances).predict(row, [Offset()])[0]


def test_every_feature_has_a_weight() -> None:
    found = json.loads(PATH.read_text(encoding="utf-8"))
    assert set(found["features"]) == set(FEATURES)
    assert found["trained_on"]["labels"] > 10_000
    assert read_prior(found) == PRIOR


def test_model_features_start_at_0() -> None:
    assert [PRIOR.weights[PRIOR.position(name)] for name in ("regret", "regret_known")] == [0.0, 0.0]


def test_no_difference_is_evidence_for_a_candidate() -> None:
    assert all(PRIOR.weights[PRIOR.position(name)] <= 0 for name in DIFFERENCES)


def test_nearer_is_likelier() -> None:
    chances = [chance("What is rain made of?", "What is rain made from?", s) for s in (0.5, 0.7, 0.9, 0.97, 0.995)]
    assert chances == sorted(chances)
    assert chance("What is rain made of?", "Who wrote the play?", 0.3) < 0.1
    assert chances[-1] > 0.6


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("the war of 1914", "the war of 1915"),
        ("the tallest hill", "the lowest hill"),
        ("dog bites man", "man bites dog"),
    ],
)
def test_a_telling_difference_costs(asked: str, stored: str) -> None:
    assert chance(asked, stored, 0.95) < chance(asked, asked, 0.95)
