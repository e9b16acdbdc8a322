"""Sampling: token = argmax(filtered logits / T + Gumbel noise), the noise keyed by (seed, position).

Keyed noise makes a seed give the same answer alone, in a batch, or behind a draft. Noise and filters are computed on
the host, so CPU and CUDA agree; greedy rows never leave the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semcache.daemon.request import Sampling

NAN_LOGITS = "the model computed NaN or infinite logits; try model.dtype = float32"
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class SampleKey:
    """How one row is sampled: its parameters, the seed of its noise and the position of the token to choose."""

    sampling: Sampling
    seed: int
    position: int


def sample(logits: Tensor, keys: Sequence[SampleKey]) -> list[int | None]:
    """One token id for each row of logits [rows, vocab]; equal logits go to the lowest id.

    None for a row whose largest is NaN or infinite: what is subtracted from it is no number.
    """
    best = logits.argmax(dim=-1)  # the first of equal maxima and of NaN, on every device
    is_finite = logits.gather(1, best[:, None]).isfinite()[:, 0].tolist()
    tokens: list[int | None] = best.tolist()
    for row, key in enumerate(keys):
        if not is_finite[row]:
            tokens[row] = None
        elif not key.sampling.is_greedy:
            tokens[row] = _sample_row(logits[row].to("cpu", torch.float32), key)
    return tokens


def sample_clearly(logits: Tensor, keys: Sequence[SampleKey], tie_margin: float) -> Iterator[int | None]:
    """Row by row the token that `sample` gives, or None where logits that differ by `tie_margin` could give another.

    None also for a row whose largest is NaN or infinite: a row behind it in the same pass may have made it so. Rows are
    sampled as they are asked for, so that nothing is spent on rows behind the first mismatch.
    """
    top = logits.topk(2, dim=-1)
    is_finite = top.values[:, 0].isfinite().tolist()
    margins = (top.values[:, 0].float() - top.values[:, 1].float()).tolist()
    tokens: list[int] = top.indices[:, 0].tolist()
    for row, key in enumerate(keys):
        if not is_finite[row]:
            yield None
        elif key.sampling.is_greedy:
            yield tokens[row] if margins[row] > tie_margin else None
        else:
            yield _sample_row_clearly(logits[row].to("cpu", torch.float32), key, tie_margin)


def _sample_row(logits: Tensor, key: SampleKey) -> int:
    scaled = _scaled(logits, key.sampling)
    kept = _filtered(scaled, key.sampling.top_k, key.sampling.top_p).nonzero()[:, 0]  # rising: ties go to the lowest id
    noise = gumbel(key.seed, key.position, scaled.numel(), kept)
    return int(kept[(scaled[kept] + noise).argmax()])


def _sample_row_clearly(logits: Tensor, key: SampleKey, tie_margin: float) -> int | None:
    """The winner by more than the margin of everything the filters might keep, if they keep it for certain.

    The margin is in units of logits: noise is added to logits / T, so it is divided by T too.
    """
    scaled, margin = _scaled(logits, key.sampling), tie_margin / key.sampling.temperature
    certain, possible = _filtered_within(scaled, key.sampling, margin)
    kept = possible.nonzero()[:, 0]
    scores = scaled[kept] + gumbel(key.seed, key.position, scaled.numel(), kept)
    best = scores.topk(min(2, scores.numel()))
    token = int(kept[best.indices[0]])
    is_clear = best.values.numel() == 1 or float(best.values[0] - best.values[1]) > margin
    return token if is_clear and bool(certain[token]) else None


def _scaled(logits: Tensor, sampling: Sampling) -> Tensor:
    # Subtracting the maximum first keeps tiny temperatures finite.
    return (logits - logits.max()) / sampling.temperature  # [vocab]


def _filtered_within(scaled: Tensor, sampling: Sampling, margin: float) -> tuple[Tensor, Tensor]:
    """Masks of what the filters keep for certain and of what they may keep, if scores were off by the margin."""
    kept = torch.ones_like(scaled, dtype=torch.bool)
    if not 0 < sampling.top_k < scaled.numel() and sampling.top_p >= 1.0:
        return kept, kept
    # Scores that are off by half the margin either way move the probability of a set by less than half the margin.
    slack = margin / 2 if sampling.top_p < 1.0 else 0.0
    fewer = _filtered(scaled, sampling.top_k, sampling.top_p - slack)
    more = _filtered(scaled, sampling.top_k, sampling.top_p + slack)
    certain = scaled > scaled[~fewer].max() + margin if not fewer.all() else kept
    return certain, scaled >= scaled[more].min() - margin


def _filtered(scaled: Tensor, top_k: int, top_p: float) -> Tensor:
    """Mask of what top-k and then top-p keep; never empty."""
    kept = torch.ones_like(scaled, dtype=torch.bool)
    if 0 < top_k < scaled.numel():
        kept = _largest(scaled, top_k)
    if top_p < 1.0:
        ids = kept.nonzero()[:, 0]
        kept = torch.zeros_like(kept)
        kept[ids[_nucleus(scaled[ids], top_p)]] = True
    return kept


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
