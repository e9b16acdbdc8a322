"""Prefill: a prompt in chunks, so that cold and warm runs execute the same kernels on the same shapes.

In `bitwise` chunks start at multiples of the chunk size whatever was restored; that is what makes reuse bit-identical.
What else is in the pass changes no bit, or is not there (rows.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from semcache.daemon.cuts import Cuts
from semcache.daemon.engine.forward import Forward, Pass, token_ids
from semcache.daemon.engine.kv import SlotPool, StepCache


def next_stop(start: int, num_prompt_tokens: int, chunk_tokens: int, cuts: Cuts) -> int:
    """Where the chunk that begins at `start` ends: a chunk behind the last place for a cut, or with the prompt."""
    return min(num_prompt_tokens, cuts.last(start) + chunk_tokens)


def prefill_pass(
    pool: SlotPool, slot: int, tokens: Sequence[int], start: int, *, num_logits: int, chunk_tokens: int | None = None
) -> Pass:
    """Write the KV of `tokens` at `start`; gives logits [1, num_logits, vocab].

    With `chunk_tokens` they are several chunks.
    """
    cache = StepCache(pool, pool.prefill_step(slot, start, start + len(tokens), chunk_tokens))
    return Pass(token_ids([list(tokens)], cache), cache, num_logits)


def prefill_chunk(
    forward: Forward, pool: SlotPool, slot: int, tokens: Sequence[int], start: int, *, num_logits: int
) -> Tensor | None:
    """A `prefill_pass` of its own; the logits behind the last tokens, [num_logits, vocab], None where that is 0."""
    logits = forward(*prefill_pass(pool, slot, tokens, start, num_logits=num_logits))
    return None if logits is None else logits[0]
