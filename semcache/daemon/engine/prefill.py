"""Prefill: one prompt, one chunk, one forward, so that cold and warm runs execute the same kernels on the same shapes.

In `bitwise` chunks start at multiples of the chunk size whatever was restored; that is what makes reuse bit-identical.
Mixing rows in one forward would change shapes, and with them the last bits. Several chunks of one prompt go into one
forward only where that was proven to change none of them (trial.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from semcache.daemon.cuts import Cuts
from semcache.daemon.engine.forward import Forward, token_ids
from semcache.daemon.engine.kv import SlotPool, StepCache


def next_stop(start: int, num_prompt_tokens: int, chunk_tokens: int, cuts: Cuts) -> int:
    """Where the chunk that begins at `start` ends: a chunk behind the last place for a cut, or with the prompt."""
    return min(num_prompt_tokens, cuts.last(start) + chunk_tokens)


def prefill_chunk(
    forward: Forward, pool: SlotPool, slot: int, tokens: Sequence[int], start: int, *, num_logits: int,
    chunk_tokens: int | None = None,
) -> Tensor | None:  # fmt: skip
    """Write the KV of `tokens` at `start`; the logits behind the last ones, [num_logits, vocab], None where that is 0.

    With `chunk_tokens` they are several chunks, in one wide pass.
    """
    cache = StepCache(pool, pool.prefill_step(slot, start, start + len(tokens), chunk_tokens))
    logits = forward(token_ids([list(tokens)], cache), cache, num_logits)  # [1, num_logits, vocab]
    return None if logits is None else logits[0]
