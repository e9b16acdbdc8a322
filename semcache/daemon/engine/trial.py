"""What an engine computes before anybody asks: kernels get chosen, the last bits get a name, other shapes are proven.

A wide pass takes several chunks of a prompt at once, with attention chunk by chunk as ever. Every other product works
row by row, so it may give each row the bits that a single chunk gives it; whether it does is up to the kernels, and
tried here. Where it does, a lone prompt costs fewer passes and its KV may still be cut at every chunk.

A narrow pass takes the last rows of a chunk alone: all that is needed where KV was restored and only logits are not.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semcache.daemon.engine.decode import DecodeRow, decode_rows
from semcache.daemon.engine.forward import Forward, token_ids
from semcache.daemon.engine.kv import SlotPool, StepCache
from semcache.daemon.engine.prefill import prefill_chunk
from semcache.daemon.engine.sampler import SampleKey, sample
from semcache.daemon.request import Sampling

WIDTHS = (4, 2)  # chunks in one pass; eight bring little more, and whoever comes meanwhile waits for all of them
# Queries are attended in blocks of 32 (64 where a chunk has 192 and more), so a whole block may keep its bits.
NARROW_ROWS = (32, 64)
_NARROW_CHUNKS = 8  # restored before the chunk of the trial: enough keys for several blocks of them
_TELLING_LAYERS = 3  # layers of one structure call the same kernels; a model of several kinds is tried as a whole


@dataclass(frozen=True)
class Trial:
    """`digest` names the bits that are computed here; `widths` are the proven numbers of chunks, largest first.

    `last_rows` of a chunk that is not the first of its prompt give its last token the bits that the whole chunk does.
    """

    digest: str
    widths: tuple[int, ...]
    last_rows: int


@torch.inference_mode()
def try_out(forward: Forward, pool: SlotPool, chunk_tokens: int) -> Trial:
    """Compute prompts that nobody asked for in a free slot of the pool."""
    # An operation's first use takes milliseconds, which the first sampled answer would wait for.
    sample(torch.zeros(1, pool.info.vocab_size), [SampleKey(Sampling(temperature=1.0), 0, 0)])
    slot = pool.acquire()
    try:
        return Trial(
            _digest(forward, pool, slot, chunk_tokens),
            _proven_widths(forward, pool, slot, chunk_tokens),
            _proven_last_rows(forward, pool, slot, chunk_tokens),
        )
    finally:
        pool.release(slot)


def _digest(forward: Forward, pool: SlotPool, slot: int, chunk_tokens: int) -> str:
    """SHA-256 of the KV and logits of one chunk and one decode step."""
    num_tokens = min(chunk_tokens, pool.info.context_tokens - 1)
    tokens = _tokens(pool, num_tokens + 1)
    prefilled = prefill_chunk(forward, pool, slot, tokens[:-1], 0, is_last=True)
    assert prefilled is not None
    decoded = decode_rows(forward, pool, [DecodeRow(slot, num_tokens, tokens[-1])])
    kv = pool.snapshot(slot, 0, num_tokens + 1)
    digest = hashlib.sha256()
    for tensor in (kv.keys, kv.values, prefilled, decoded):
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _proven_widths(forward: Forward, pool: SlotPool, slot: int, chunk_tokens: int) -> tuple[int, ...]:
    depth = _telling_depth(forward, pool.info.num_layers)

    def computed(width: int, num_tokens: int) -> tuple[Tensor, ...]:
        """KV of the layers that tell, and the last logits where that is all of them."""
        step_tokens, tokens, logits = width * chunk_tokens, _tokens(pool, num_tokens), None
        for start in range(0, num_tokens, step_tokens):
            some = tokens[start : start + step_tokens]
            if depth < pool.info.num_layers:
                _begin_pass(forward, pool, slot, some, start, chunk_tokens, depth)
            else:
                logits = prefill_chunk(forward, pool, slot, some, start, is_last=True, chunk_tokens=chunk_tokens)
        kv = pool.snapshot(slot, 0, num_tokens)
        return kv.keys[:depth], kv.values[:depth], *([] if logits is None else [logits])

    widths = [width for width in WIDTHS if width * chunk_tokens <= pool.info.context_tokens]
    return tuple(
        width
        for width in widths
        if all(map(torch.equal, computed(1, width * chunk_tokens), computed(width, width * chunk_tokens)))
    )


def _proven_last_rows(forward: Forward, pool: SlotPool, slot: int, chunk_tokens: int) -> int:
    depth = _telling_depth(forward, pool.info.num_layers)
    start = min(_NARROW_CHUNKS, pool.info.context_tokens // chunk_tokens - 1) * chunk_tokens
    stop = start + chunk_tokens
    if start <= 0:
        return chunk_tokens
    tokens = _tokens(pool, stop)

    def computed(num_rows: int) -> tuple[Tensor, ...]:
        """Logits and KV that come from the last rows of the chunk; what is before them stays as it is in the slot."""
        some, first = tokens[stop - num_rows :], stop - num_rows
        logits = None
        if depth < pool.info.num_layers:
            _begin_pass(forward, pool, slot, some, first, num_rows, depth)
        else:
            logits = prefill_chunk(forward, pool, slot, some, first, is_last=True)
        kv = pool.snapshot(slot, start, stop)
        return kv.keys[:depth], kv.values[:depth], *([] if logits is None else [logits])

    whole = computed(chunk_tokens)
    narrower = [num_rows for num_rows in NARROW_ROWS if num_rows < chunk_tokens]
    return next((rows for rows in narrower if all(map(torch.equal, whole, computed(rows)))), chunk_tokens)


def _begin_pass(
    forward: Forward, pool: SlotPool, slot: int, tokens: list[int], start: int, chunk_tokens: int, depth: int
) -> None:
    """A prefill pass as far as the KV of the first `depth` layers."""
    step = pool.prefill_step(slot, start, start + len(tokens), chunk_tokens)
    cache = _ShallowCache(pool, step, depth)
    with suppress(_EnoughError):
        forward(token_ids([tokens], cache), cache, 0)


def _tokens(pool: SlotPool, num_tokens: int) -> list[int]:
    return [position * 7 % pool.info.vocab_size for position in range(num_tokens)]


def _telling_depth(forward: Forward, num_layers: int) -> int:
    """How many layers' KV shows what all layers do: each shows the layers before it."""
    layers = getattr(forward.model.base_model, "layers", None)
    # A module's text names its parts and their sizes.
    is_uniform = layers is not None and len({str(layer) for layer in layers}) == 1
    return min(num_layers, _TELLING_LAYERS) if is_uniform else num_layers


class _EnoughError(Exception):
    """The layers that tell are through."""


class _ShallowCache(StepCache):
    """Ends the forward at the given layer, once its KV is written."""

    def __init__(self, pool: SlotPool, step: Any, depth: int) -> None:
        super().__init__(pool, step)
        self._depth = depth

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        read = super().update(keys, values, layer_idx, *args, **options)
        if layer_idx + 1 == self._depth:
            raise _EnoughError
        return read
