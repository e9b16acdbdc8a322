"""Prefill: one prompt, one chunk, one forward, so that cold and warm runs execute the same kernels on the same shapes.

In `bitwise` chunks start at multiples of the chunk size whatever was restored; that is what makes reuse bit-identical.
Mixing rows in one forward would change shapes, and with them the last bits. Several chunks of one prompt go into one
forward only where that was proven to change none of them (trial.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semcache.daemon.engine.attention import running
from semcache.daemon.engine.kv import PrefillStep, SlotPool, StepCache


def next_stop(start: int, num_prompt_tokens: int, chunk_tokens: int, cut_tokens: int) -> int:
    """Where the chunk that begins at `start` ends: a chunk behind the last place for a cut, or with the prompt."""
    return min(num_prompt_tokens, start // cut_tokens * cut_tokens + chunk_tokens)


def last_cut(num_prompt_tokens: int, cut_tokens: int) -> int:
    """The last place for a cut that leaves the last prompt token to compute."""
    return (num_prompt_tokens - 1) // cut_tokens * cut_tokens


def prefill_chunk(
    model: PreTrainedModel, pool: SlotPool, slot: int, tokens: Sequence[int], start: int, *, is_last: bool,
    chunk_tokens: int | None = None,
) -> Tensor | None:  # fmt: skip
    """Write the KV of `tokens` at `start`; the logits [vocab] of the last one when the prompt ends here.

    With `chunk_tokens` they are several chunks, in one wide pass.
    """
    step = pool.prefill_step(slot, start, start + len(tokens), chunk_tokens)
    with running(step):
        if is_last:
            logits: Tensor = model(**step_inputs(pool, step, tokens), logits_to_keep=1).logits  # [1, 1, vocab]
            return logits[0, 0]
        # Without the vocabulary product, whose result nobody would read.
        model.base_model(**step_inputs(pool, step, tokens))
    return None


def chunk_logits(
    model: PreTrainedModel, pool: SlotPool, slot: int, tokens: Sequence[int], start: int, *, num_logits: int
) -> Tensor:
    """Write the KV of `tokens` at `start`; the logits behind the last ones, [num_logits, vocab]."""
    step = pool.prefill_step(slot, start, start + len(tokens))
    with running(step):
        logits: Tensor = model(**step_inputs(pool, step, tokens), logits_to_keep=num_logits).logits  # [1, kept, vocab]
    return logits[0]


def step_inputs(pool: SlotPool, step: PrefillStep, tokens: Sequence[int]) -> dict[str, Any]:
    """What the model is called with for a step; also for its inner part without the vocabulary product."""
    device = pool.keys[0].device
    return {
        "input_ids": torch.tensor([list(tokens)], device=device),
        "position_ids": torch.arange(step.start, step.stop, device=device)[None],
        "past_key_values": StepCache(pool, step),
        "use_cache": True,
    }
