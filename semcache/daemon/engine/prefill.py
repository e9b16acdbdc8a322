"""Prefill: one prompt, one chunk, one forward, so that cold and warm runs execute the same kernels on the same shapes.

Chunks start at multiples of the chunk size whatever was restored; that is what makes reuse bit-identical. Mixing rows
or chunks in one forward would change shapes, and with them the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semcache.daemon.engine.attention import running
from semcache.daemon.engine.kv import PrefillStep, SlotPool, StepCache


def next_stop(start: int, num_prompt_tokens: int, chunk_tokens: int) -> int:
    """Where the chunk that begins at `start` ends: at the next multiple of the chunk or with the prompt."""
    return min(num_prompt_tokens, (start // chunk_tokens + 1) * chunk_tokens)


def last_chunk_start(num_prompt_tokens: int, chunk_tokens: int) -> int:
    """Where the chunk begins that holds the last prompt token."""
    return (num_prompt_tokens - 1) // chunk_tokens * chunk_tokens


def prefill_chunk(
    model: PreTrainedModel, pool: SlotPool, slot: int, tokens: Sequence[int], start: int, *, is_last: bool
) -> Tensor | None:
    """Write the KV of `tokens` at `start`; the logits [vocab] of the last one when the prompt ends here."""
    if is_last:
        return chunk_logits(model, pool, slot, tokens, start, num_logits=1)[0]
    step = pool.prefill_step(slot, start, start + len(tokens))
    with running(step):
        # Without the vocabulary product, whose result nobody would read.
        model.base_model(**_inputs(pool, step, tokens))
    return None


def chunk_logits(
    model: PreTrainedModel, pool: SlotPool, slot: int, tokens: Sequence[int], start: int, *, num_logits: int
) -> Tensor:
    """Write the KV of `tokens` at `start`; the logits behind the last ones, [num_logits, vocab]."""
    step = pool.prefill_step(slot, start, start + len(tokens))
    with running(step):
        logits: Tensor = model(**_inputs(pool, step, tokens), logits_to_keep=num_logits).logits  # [1, kept, vocab]
    return logits[0]


def _inputs(pool: SlotPool, step: PrefillStep, tokens: Sequence[int]) -> dict[str, Any]:
    device = pool.keys[0].device
    return {
        "input_ids": torch.tensor([list(tokens)], device=device),
        "position_ids": torch.arange(step.start, step.stop, device=device)[None],
        "past_key_values": StepCache(pool, step),
        "use_cache": True,
    }
