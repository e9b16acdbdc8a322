"""Verification: drafted tokens behind the newest one in one pass, as a chunk of that request's own.

The model's own token of each position is chosen as decode would choose it, so a draft changes when tokens come and not
which. Other shapes round differently; a position where that could matter is left to plain decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semcache.daemon.engine.sampler import SampleKey, sample_clearly

# Top-two logits that lie closer are a tie. Above what shapes change (1e-5 in float32 where logits reach 30, one or two
# of the last bits in the others).
TIE_MARGINS = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.125}


@dataclass(frozen=True)
class Verified:
    """What one pass over a draft brought."""

    tokens: list[int]  # what follows: the accepted tokens, then at most one of the model's own
    num_accepted: int
    is_tied: bool  # stopped where rounding could decide, or before what is no number; the next token is decode's


def judge(logits: Tensor, drafted: Sequence[int], keys: Sequence[SampleKey], tie_margin: float) -> Verified:
    """Accept drafted tokens while they are the model's own; `logits` [rows, vocab], the first behind the newest token.

    One row more than tokens gives one token more. NaN or infinite logits are a tie: a mask does not hide the KV of a
    drafted token that is no number from the rows before it, so only plain decode can tell whether the model fails here.
    """
    tokens: list[int] = []
    for own in sample_clearly(logits, keys, tie_margin):
        if own is None:
            return Verified(tokens, len(tokens), is_tied=True)
        tokens.append(own)
        if len(tokens) > len(drafted) or own != drafted[len(tokens) - 1]:
            return Verified(tokens, len(tokens) - 1, is_tied=False)
    return Verified(tokens, len(tokens), is_tied=False)


def regrets(logits: Tensor, drafted: Sequence[int]) -> list[float]:
    """How far each drafted token lies below the likeliest of its row, in nats."""
    rows = logits[: len(drafted)].float()
    chosen = rows.gather(1, torch.tensor(drafted[: len(rows)], device=rows.device)[:, None])[:, 0]
    gaps: list[float] = (rows.amax(dim=-1) - chosen).tolist()  # the normaliser of the softmax cancels
    return gaps
