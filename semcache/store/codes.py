"""Vectors in one byte a number: a first look that reads a quarter of the memory, with a bound on how far it is off.

A search over many rows is limited by memory; this one finds the few rows that could be nearest, which are then compared
exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# Each of: the query, the scales and the result in bfloat16 (8 bits of mantissa), of a score of at most 1.
_ROUNDING = 3 * 2.0**-8

_LANES = 64  # the product reads rows in steps of 16 and does not look where they end


def can_code(dim: int) -> bool:
    """Whether this torch has the product of bytes, for rows of this length."""
    return dim % _LANES == 0 and hasattr(torch, "_weight_int8pack_mm")


class Codes:
    """Rows of unit vectors, each as int8 numbers and one scale."""

    def __init__(self, dim: int) -> None:
        assert can_code(dim), dim
        self._codes = torch.empty((0, dim), dtype=torch.int8)
        self._scales = torch.empty(0, dtype=torch.float32)

    def put(self, first: int, vectors: NDArray[np.float32]) -> None:
        """Write rows from `first` on; there is room for as many rows as were ever written, doubled."""
        stop = first + vectors.shape[0]
        if stop > self._codes.shape[0]:
            more = max(stop - self._codes.shape[0], self._codes.shape[0])
            self._codes = torch.cat([self._codes, torch.empty((more, self._codes.shape[1]), dtype=torch.int8)])
            self._scales = torch.cat([self._scales, torch.empty(more, dtype=torch.float32)])
        rows = torch.from_numpy(vectors)
        scales = rows.abs().amax(dim=1).clamp_min(1e-12) / 127
        self._codes[first:stop] = (rows / scales[:, None]).round().to(torch.int8)
        self._scales[first:stop] = scales

    def cut(self, num: int) -> None:
        """Keep the first rows and no room for more."""
        self._codes, self._scales = self._codes[:num].clone(), self._scales[:num].clone()

    def move(self, source: int, target: int) -> None:
        self._codes[target] = self._codes[source]
        self._scales[target] = self._scales[source]

    def scores(self, query: NDArray[np.float32], num: int) -> tuple[NDArray[np.float32], float]:
        """Approximate cosines of the first `num` rows, and how far any of them may be off."""
        scales = self._scales[:num]
        with torch.inference_mode():
            asked = torch.from_numpy(query).to(torch.bfloat16)[None]
            found = torch._weight_int8pack_mm(asked, self._codes[:num], scales.to(torch.bfloat16))
            # Every number of a row is off by half a step at most.
            slack = float(scales.max()) / 2 * float(np.abs(query).sum()) + _ROUNDING
            return found[0].to(torch.float32).numpy(), slack
