"""Confidence intervals of a share that was counted."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson(num_wrong: int, num: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """The two-sided Wilson interval of `num_wrong` in `num`; None where nothing was counted."""
    if num <= 0:
        return None
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_wrong / num
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return max(0.0, middle - half), min(1.0, middle + half)
