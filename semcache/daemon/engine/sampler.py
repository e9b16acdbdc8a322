"""Sampling: token = argmax(filtered logits / T + Gumbel noise), the noise keyed by (seed, position).

Keyed noise makes a seed give the same answer alone, in a batch, or behind a draft. Noise and filters are computed on
the host, so CPU and CUDA agree; greedy rows never leave the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semcache.daemon.request import Sampling
from semcache.errors import EngineError

_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class SampleKey:
    """How one row is sampled: its parameters, the seed of its noise and the position of the token to choose."""

    sampling: Sampling
    seed: int
    position: int


def sample(logits: Tensor, keys: Sequence[SampleKey]) -> list[int]:
    """One token id for each row of logits [rows, vocab]; equal logits go to the lowest id."""
    best = logits.argmax(dim=-1)  # the first of equal maxima, on every device
    if logits.gather(1, best[:, None]).isnan().any():
        raise EngineError("the model computed NaN logits; try model.dtype = float32")
    tokens: list[int] = best.tolist()
    for row, key in enumerate(keys):
        if not key.sampling.is_greedy:
            tokens[row] = _sample_row(logits[row].to("cpu", torch.float32), key)
    return tokens


def _sample_row(logits: Tensor, key: SampleKey) -> int:
    sampling = key.sampling
    # Subtracting the maximum first keeps tiny temperatures finite.
    scaled = (logits - logits.max()) / sampling.temperature  # [vocab]
    kept = torch.arange(scaled.numel())  # ids in rising order, so that ties go to the lowest
    if 0 < sampling.top_k < scaled.numel():
        kept = kept[_largest(scaled, sampling.top_k)]
    if sampling.top_p < 1.0:
        kept = kept[_nucleus(scaled[kept], sampling.top_p)]
    noise = gumbel(key.seed, key.position, scaled.numel(), kept)
    return int(kept[(scaled[kept] + noise).argmax()])


def _largest(scores: Tensor, num_kept: int) -> Tensor:
    """Mask of exactly `num_kept` scores; of equal ones the first stay."""
    threshold = torch.topk(scores, num_kept).values[-1]
    kept = scores > threshold
    ties = (scores == threshold).nonzero()[:, 0]
    kept[ties[: num_kept - int(kept.sum())]] = True
    return kept


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Mask of the smallest set of most likely scores whose probabilities reach `top_p`; never empty."""
    probabilities = scores.softmax(dim=-1)
    # Tokens below (1 - p) / vocab weigh less than 1 - p together, so the nucleus lies above: sorting stays small.
    floor = min((1.0 - top_p) / scores.numel(), float(probabilities.max()))
    candidates = (probabilities >= floor).nonzero()[:, 0]
    ordered, order = probabilities[candidates].sort(descending=True, stable=True)
    before = ordered.double().cumsum(0) - ordered  # probability of everything more likely
    is_kept = before < top_p
    is_kept[0] = True
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[candidates[order[is_kept]]] = True
    return kept


def gumbel(seed: int, position: int, vocab_size: int, ids: Tensor) -> Tensor:
    """Gumbel noise of the given token ids at one position, float64 on the host; an id's noise ignores the others."""
    generator = torch.Generator().manual_seed(_mix(seed, position))
    uniform = torch.rand(vocab_size, generator=generator, dtype=torch.float64)[ids]
    # rand may return exactly 0, whose double logarithm is -inf: that token then simply loses.
    return -torch.log(-torch.log(uniform))


def _mix(seed: int, position: int) -> int:
    """Spread (seed, position) over 64 bits (splitmix64); the CPU generator itself uses the lower 32 of them."""
    mixed = (seed & _MASK_64) ^ ((position + 1) * 0x9E3779B97F4A7C15 & _MASK_64)
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK_64
    return mixed ^ (mixed >> 31)
