"""Decode: one token for every running row in one forward, each row at its own position in its own slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semcache.daemon.engine.forward import Forward, token_ids
from semcache.daemon.engine.kv import SlotPool, StepCache


@dataclass(frozen=True)
class DecodeRow:
    """The newest token of one request and where its KV goes."""

    slot: int
    position: int
    token: int


def decode_rows(forward: Forward, pool: SlotPool, rows: Sequence[DecodeRow]) -> Tensor:
    """Write the KV of each row's token; returns the logits behind it, [rows, vocab]."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].slot)
    by_slot = [rows[i] for i in order]
    cache = StepCache(pool, pool.decode_step([(row.slot, row.position) for row in by_slot]))
    logits = forward(token_ids([[row.token] for row in by_slot], cache), cache, 1)  # [rows, 1, vocab]
    assert logits is not None
    if by_slot == list(rows):
        return logits[:, -1]
    return logits[torch.tensor(order, device=logits.device).argsort(), -1]
