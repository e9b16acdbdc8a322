"""The calibration follows its labels, and an entry's offset shrinks where little was seen."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.daemon.cache.calibration import OFFSET_VARIANCE, Calibration, Offset, sigmoid


def fresh() -> Calibration:
    return Calibration([-1.0, 2.0, 0.0], [1.0, 0.25, 0.25])


def learn_domain(calibration: Calibration, truth: list[float], num: int, seed: int) -> np.ndarray:
    """Labels of a domain with other weights; returns the predictions made before each label, and the labels."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        x = np.array([1.0, *draw.normal(size=2)])
        same = bool(draw.random() < sigmoid(float(x @ np.array(truth))))
        rows.append((calibration.predict(x[None], [Offset(variance=1e-9)])[0], same))
        calibration.learn(x, same, Offset(variance=1e-9))
    return np.array(rows)


def log_loss(rows: np.ndarray) -> float:
    p, y = rows[:, 0], rows[:, 1]
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def test_a_shifted_domain_is_learned() -> None:
    truth = [1.0, 1.0, -1.5]
    calibration = fresh()
    rows = learn_domain(calibration, truth, 3000, seed=1)
    assert log_loss(rows[-1000:]) < 0.9 * log_loss(rows[:100])
    assert calibration.weights == pytest.approx(truth, abs=0.25)
    late = rows[-1000:]
    assert late[:, 0].mean() == pytest.approx(late[:, 1].mean(), abs=0.03)


def test_doubt_keeps_the_weights_and_learns_faster_again() -> None:
    calibration = fresh()
    learn_domain(calibration, [-1.0, 2.0, 0.0], 2000, seed=2)
    before, sure = calibration.weights.copy(), calibration.covariance.copy()
    calibration.doubt()
    assert (calibration.weights == before).all()
    assert (calibration.covariance.diagonal() > 5 * sure.diagonal()).all()


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_an_offset_shrinks_to_what_was_seen(labels: list[bool]) -> None:
    calibration, offset, x = fresh(), Offset(), np.array([1.0, 0.0, 0.0])
    spread = [offset.variance]
    for same in labels:
        calibration.learn(x, same, offset)
        spread.append(offset.variance)
    assert spread == sorted(spread, reverse=True)
    assert spread[0] == OFFSET_VARIANCE
    assert abs(offset.mean) <= OFFSET_VARIANCE * len(labels)
    if all(labels):
        assert offset.mean > 0
    if not any(labels):
        assert offset.mean < 0


def test_one_wrong_label_moves_the_entry_and_no_other() -> None:
    calibration, seen, x = Calibration([2.0], [1e-6]), Offset(), np.array([1.0])
    before = calibration.predict(x[None], [Offset()])[0]
    calibration.learn(x, False, seen)
    assert calibration.predict(x[None], [seen])[0] < before - 0.03
    assert calibration.predict(x[None], [Offset()])[0] == pytest.approx(before, abs=1e-4)


def test_what_is_unknown_pulls_towards_even_odds() -> None:
    sure, unsure, x = Calibration([3.0], [1e-6]), Calibration([3.0], [4.0]), np.array([[1.0]])
    assert 0.5 < unsure.predict(x, [Offset()])[0] < sure.predict(x, [Offset()])[0]


def test_a_belief_survives_json() -> None:
    calibration = fresh()
    learn_domain(calibration, [0.0, 1.0, 1.0], 200, seed=3)
    other = fresh()
    other.restore(json.loads(json.dumps(calibration.dump())))
    assert other.weights == pytest.approx(calibration.weights)
    assert other.covariance == pytest.approx(calibration.covariance)


@pytest.mark.parametrize(
    "damage",
    [
        {"weights": [0.0, 1.0]},
        {"weights": [0.0, 1.0, float("nan")]},
        {"covariance": [1.0, 2.0, 1.0, 0.0, 0.0, 1.0]},
        {"covariance": [1.0]},
    ],
)
def test_a_damaged_belief_is_refused(damage: dict[str, list[float]]) -> None:
    calibration = fresh()
    with pytest.raises(ValueError, match=r"belief|covariance"):
        calibration.restore({**calibration.dump(), **damage})
    assert calibration.weights.tolist() == [-1.0, 2.0, 0.0]


@given(st.floats(-1e6, 1e6))
def test_sigmoid_never_overflows(value: float) -> None:
    assert 0 <= sigmoid(value) <= 1
