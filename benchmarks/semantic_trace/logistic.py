"""An unpenalised logistic line through a few labelled similarities, by Newton's method."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# The mean log-loss is flat where every part of its gradient is below this. On data that a threshold separates there is
# no best slope: it grows until the gradient has faded, and this is where it stops.
GRADIENT_TOLERANCE = 1e-8
MAX_STEPS = 1000


class Line(NamedTuple):
    """P(label = 1 | s) = sigmoid(intercept + slope * s)."""

    intercept: float
    slope: float


def sigmoid(x: Numbers) -> Numbers:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def fit(similarities: Numbers, labels: Numbers) -> Line:
    """The line of highest likelihood; both arrays [n], labels 0 or 1 and both present."""
    centre = float(similarities.mean())  # the two parameters are nearly independent around it
    x = similarities - centre
    a = b = 0.0
    loss = _loss(a + b * x, labels)
    for _ in range(MAX_STEPS):
        p = sigmoid(a + b * x)
        residual = p - labels
        gradient_a, gradient_b = float(residual.mean()), float((residual * similarities).mean())
        if max(abs(gradient_a), abs(gradient_b)) < GRADIENT_TOLERANCE:
            break
        weight = np.maximum(p * (1.0 - p), 1e-300)
        h_aa, h_ab, h_bb = float(weight.mean()), float((weight * x).mean()), float((weight * x * x).mean())
        determinant = h_aa * h_bb - h_ab * h_ab
        if determinant <= 1e-12 * h_aa * h_bb:
            break
        down_b = gradient_b - centre * gradient_a
        step_a = (h_bb * gradient_a - h_ab * down_b) / determinant
        step_b = (h_aa * down_b - h_ab * gradient_a) / determinant
        size = 1.0
        while (tried := _loss(a - size * step_a + (b - size * step_b) * x, labels)) > loss and size > 1e-6:
            size /= 2  # Newton overshoots where the loss is nearly flat
        if size <= 1e-6:
            break
        a, b, loss = a - size * step_a, b - size * step_b, tried
    return Line(a - b * centre, b)


def _loss(logits: Numbers, labels: Numbers) -> float:
    return float((np.logaddexp(0.0, logits) - labels * logits).mean())
