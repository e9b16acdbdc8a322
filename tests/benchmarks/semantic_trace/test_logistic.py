"""Newton's line against scikit-learn's unpenalised one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from benchmarks.semantic_trace.logistic import GRADIENT_TOLERANCE, Line, Numbers, fit, sigmoid


def reference(similarities: Numbers, labels: Numbers) -> Line:
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000)
    model.fit(similarities[:, None], labels)
    return Line(float(model.intercept_[0]), float(model.coef_[0, 0]))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("num", [12, 40, 300])
def test_it_is_scikit_learns_line(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    similarities = np.concatenate([[0.0, 1.0, 0.9, 0.7], rng.uniform(0.5, 1.0, num)])
    drawn = rng.random(num) < sigmoid(12 * (similarities[4:] - 0.8))
    labels = np.concatenate([[0, 1, 0, 1], drawn]).astype(float)  # the third and fourth overlap
    ours, theirs = fit(similarities, labels), reference(similarities, labels)
    assert ours.slope == pytest.approx(theirs.slope, rel=1e-3)
    assert -ours.intercept / ours.slope == pytest.approx(-theirs.intercept / theirs.slope, rel=1e-3)


def test_on_separable_data_the_line_falls_into_the_gap_and_is_steep() -> None:
    similarities = np.array([0.0, 0.2, 0.6, 0.9, 1.0])
    line = fit(similarities, np.array([0.0, 0.0, 0.0, 1.0, 1.0]))
    assert 0.6 < -line.intercept / line.slope < 0.9
    assert line.slope > 50


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=30))
def test_the_gradient_has_faded_whatever_the_labels(observed: list[tuple[float, bool]]) -> None:
    similarities = np.array([0.0, 1.0, *(round(s, 3) for s, _ in observed)])
    labels = np.array([0.0, 1.0, *(float(same) for _, same in observed)])
    line = fit(similarities, labels)
    residual = sigmoid(line.intercept + line.slope * similarities) - labels
    assert abs(residual.mean()) < 100 * GRADIENT_TOLERANCE
    assert abs((residual * similarities).mean()) < 100 * GRADIENT_TOLERANCE
