"""Decode: one token for every running row in one forward, each row at its own position in its own slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semcache.daemon.engine.attention import running
from semcache.daemon.engine.kv import SlotPool, StepCache


@dataclass(frozen=True)
class DecodeRow:
    """The newest token of one request and where its KV goes."""

    slot: int
    position: int
    token: int


def decode_rows(model: PreTrainedModel, pool: SlotPool, rows: Sequence[DecodeRow]) -> Tensor:
    """Write the KV of each row's token; returns the logits behind it, [rows, vocab]."""
    step = pool.decode_step([(row.slot, row.position) for row in rows])
    with running(step):
        output = model(
            input_ids=torch.tensor([[row.token] for row in rows], device=step.positions.device),
            position_ids=step.positions[:, None],
            past_key_values=StepCache(pool, step),
            use_cache=True,
        )
    logits: Tensor = output.logits  # [rows, 1, vocab]
    return logits[:, -1]
