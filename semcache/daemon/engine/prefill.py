"""Prefill: one prompt, one chunk, one forward, so that cold and warm runs execute the same kernels on the same shapes.

Chunks start at multiples of the chunk size whatever was restored; that is what makes reuse bit-identical. Mixing rows
or chunks in one forward would change shapes, and with them the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from semcache.daemon.engine.attention import running
from semcache.daemon.engine.kv import SlotPool, StepCache


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
    stop = start + len(tokens)
    step = pool.prefill_step(slot, start, stop)
    device = pool.keys[0].device
    inputs = {
        "input_ids": torch.tensor([list(tokens)], device=device),
        "position_ids": torch.arange(start, stop, device=device)[None],
        "past_key_values": StepCache(pool, step),
        "use_cache": True,
    }
    with running(step):
        if not is_last:
            model.base_model(**inputs)  # without the vocabulary product, whose result nobody would read
            return None
        logits: Tensor = model(**inputs, logits_to_keep=1).logits  # [1, 1, vocab]
    return logits[0, -1]
