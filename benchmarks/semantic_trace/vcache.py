"""The rule of vCache (Schroeder et al., arXiv 2502.03771), written anew from its published description.

Each stored entry learns by itself how similar a prompt must be. Kept as published where it is weak: one neighbour,
labels only for the nearest entry, the slope taken at its estimate, similarities rounded to three decimals.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from benchmarks.semantic_trace.logistic import Line, Numbers, fit, sigmoid

MIN_OBSERVATIONS = 6
MIN_SLOPE = 1e-6

# Variance of the threshold of an entry whose labels are separable, by number of observations. These are the known
# points of the published table, and at 26 the value that gives the known re-exploration of 45 % at 1 %. Between them
# the logarithm is interpolated linearly; above them the last one holds, as published.
_TABLE = {6: 0.0354, 10: 0.0194, 16: 0.0117, 26: 0.00695, 31: 0.0046, 48: 0.0151}
_TABLE_N = sorted(_TABLE)


def separable_variance(num: int) -> float:
    """Variance of the threshold for `num` separable observations, at least six."""
    assert num >= MIN_OBSERVATIONS
    if num >= _TABLE_N[-1]:
        return _TABLE[_TABLE_N[-1]]
    right = bisect_left(_TABLE_N, num)
    if _TABLE_N[right] == num:
        return _TABLE[num]
    low, high = _TABLE_N[right - 1], _TABLE_N[right]
    share = (num - low) / (high - low)
    return float(np.exp((1 - share) * np.log(_TABLE[low]) + share * np.log(_TABLE[high])))


@dataclass(frozen=True)
class Grid:
    """Confidence levels over which the rule minimises, and their normal quantiles."""

    epsilon: Numbers
    quantile: Numbers

    @staticmethod
    def of(epsilon: Numbers) -> Grid:
        normal = NormalDist()
        return Grid(epsilon, np.array([normal.inv_cdf(1.0 - e) for e in epsilon.tolist()]))


def published_grid() -> Grid:
    """The released code's: 50 points, evenly spaced, so that the second one is already at 0.02."""
    return Grid.of(np.linspace(1e-6, 1 - 1e-6, 50))


def fine_grid() -> Grid:
    """400 points, evenly spaced on a logarithmic scale: the same rule without the coarse grid's loss."""
    return Grid.of(np.geomspace(1e-6, 1 - 1e-6, 400))


@dataclass
class Observations:
    """What one entry has seen, with the two synthetic observations that every entry starts with."""

    similarities: list[float] = field(default_factory=lambda: [0.0, 1.0])
    labels: list[int] = field(default_factory=lambda: [0, 1])
    _fitted: tuple[float, float, float] | None = None

    def add(self, similarity: float, same: bool) -> None:
        self.similarities.append(round(similarity, 3))
        self.labels.append(int(same))
        self._fitted = None

    def explore_probability(self, similarity: float, max_error: float, grid: Grid) -> float:
        """With what probability the rule computes the answer instead of serving this entry's; below 0 is never."""
        if len(self.labels) < MIN_OBSERVATIONS:
            return 1.0
        if self._fitted is None:  # a fit depends on nothing else, so it stands until the next observation
            self._fitted = _threshold(np.array(self.similarities), np.array(self.labels, dtype=float))
        threshold, slope, deviation = self._fitted
        pessimistic = np.clip(threshold + grid.quantile * deviation, 0.0, 1.0)
        alpha = (1.0 - grid.epsilon) * sigmoid(slope * (round(similarity, 3) - pessimistic))
        return float((1.0 - max_error / (1.0 - alpha)).min())


def _threshold(similarities: Numbers, labels: Numbers) -> tuple[float, float, float]:
    """Threshold, slope and the threshold's standard deviation."""
    line = fit(similarities, labels)
    slope = max(line.slope, MIN_SLOPE)
    threshold = min(max(-line.intercept / slope, 0.0), 1.0)
    if similarities[labels == 1].min() > similarities[labels == 0].max():
        variance = separable_variance(labels.shape[0])
    else:
        variance = _delta_method(similarities, Line(line.intercept, slope))
    return threshold, slope, float(np.sqrt(variance))


def _delta_method(similarities: Numbers, line: Line) -> float:
    """Variance of -intercept / slope from the curvature of the likelihood."""
    p = sigmoid(line.intercept + line.slope * similarities)
    weight = p * (1.0 - p)
    design = np.stack([np.ones_like(similarities), similarities], axis=1)
    hessian = design.T @ (design * weight[:, None])
    gradient = np.array([-1.0 / line.slope, line.intercept / line.slope**2])
    return max(float(gradient @ np.linalg.pinv(hessian) @ gradient), 0.0)
