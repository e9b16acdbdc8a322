"""From features to the chance that a candidate's answer is right, learned one label at a time.

A logistic model with a Gaussian belief about its weights, and for each entry an offset that shrinks to 0. Each label is
one Newton step, O(d^2). Knows no prompts and no budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Variance of an entry's offset before it is seen: entries differ, most of them little.
OFFSET_VARIANCE = 0.5
# What is believed fades with each label, by this share of the first variances: a scope's traffic may change.
FADING = 2e-5


@dataclass
class Offset:
    """How much better or worse one entry is than its features say, in log-odds."""

    mean: float = 0.0
    variance: float = OFFSET_VARIANCE


class Calibration:
    """The belief of one scope: weights [d] and their covariance [d, d]."""

    def __init__(self, weights: Sequence[float], variances: Sequence[float]) -> None:
        self.weights: Array = np.array(weights, dtype=np.float64)
        self._first: Array = np.array(variances, dtype=np.float64)
        self.covariance: Array = np.diag(self._first)

    def predict(self, x: Array, offsets: Sequence[Offset]) -> list[float]:
        """The chance that each answer is right, for features [num, d].

        Averaged over all that is believed: what is unknown pulls the chance towards 1/2.
        """
        log_odds = x @ self.weights
        spread = ((x @ self.covariance) * x).sum(axis=1)
        return [
            sigmoid((value + offset.mean) / math.sqrt(1 + math.pi / 8 * (variance + offset.variance)))
            for value, variance, offset in zip(log_odds.tolist(), spread.tolist(), offsets, strict=True)
        ]

    def learn(self, x: Array, same: bool, offset: Offset) -> None:
        """One label for features [d]; moves the weights and the entry's offset."""
        projected = self.covariance @ x
        spread = float(projected @ x) + offset.variance
        p = sigmoid(float(self.weights @ x) + offset.mean)
        curvature = p * (1 - p)
        step = (float(same) - p) / (1 + curvature * spread)
        shrink = curvature / (1 + curvature * spread)
        self.weights += projected * step
        self.covariance -= np.outer(projected, projected * shrink)
        self.covariance.flat[:: len(x) + 1] += FADING * self._first
        offset.mean += offset.variance * step
        offset.variance -= offset.variance**2 * shrink

    def doubt(self) -> None:
        """Keep the weights and be as unsure of them as at first: what was learned may no longer be so."""
        self.covariance = np.diag(self._first)

    def dump(self) -> dict[str, list[float]]:
        """The belief as numbers for JSON; the covariance by its lower triangle."""
        lower = self.covariance[np.tril_indices(len(self._first))]
        return {"weights": _rounded(self.weights), "covariance": _rounded(lower)}

    def restore(self, found: dict[str, list[float]]) -> None:
        """Take over what `dump` gave; ValueError where it is not a belief about as many features."""
        dim = len(self._first)
        weights = np.array(found["weights"], dtype=np.float64)
        lower = np.array(found["covariance"], dtype=np.float64)
        if weights.shape != (dim,) or lower.shape != (dim * (dim + 1) // 2,):
            raise ValueError("a belief about other features")
        if not (np.isfinite(weights).all() and np.isfinite(lower).all()):
            raise ValueError("a belief without numbers")
        half = np.zeros((dim, dim))
        half[np.tril_indices(dim)] = lower
        covariance = half + half.T - np.diag(half.diagonal())
        if np.linalg.eigvalsh(covariance)[0] < -1e-6:
            raise ValueError("a covariance with a negative variance")
        self.weights, self.covariance = weights, covariance


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-min(value, 700.0)))
    e = math.exp(max(value, -700.0))
    return e / (1 + e)


def _rounded(values: Array) -> list[float]:
    return [float(f"{value:.9g}") for value in values.tolist()]
