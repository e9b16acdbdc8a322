"""What an engine computes before anybody asks: kernels get chosen, the last bits get a name, a narrow pass is proven.

A narrow pass takes the last rows of a chunk alone: all that is needed where KV was restored and only logits are not.
It attends in another shape than the chunk, so it is tried on a CPU only; and only with dense layers: how many rows an
expert multiplies depends on the tokens of the pass, so no one prompt is a proof.
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
from semcache.daemon.engine.llama import is_llama_like, is_uniform
from semcache.daemon.engine.prefill import prefill_chunk
from semcache.daemon.engine.sampler import SampleKey, sample
from semcache.daemon.request import Sampling

# Queries are attended in blocks, so whole ones may keep their bits. Where neither number is proven, it is not done.
NARROW_ROWS = (32, 64)
_NUM_CHUNKS = 9  # of the prompt that is tried: before the last one are enough keys for several blocks of them
_TELLING_LAYERS = 3  # layers of one structure call the same kernels; a model of several kinds is tried as a whole


@dataclass(frozen=True)
class Trial:
    """`digest` names the bits that are computed here.

    `last_rows` of a chunk that is not the first of its prompt give its last token the bits that the whole chunk does.
    """

    digest: str
    last_rows: int


@torch.inference_mode()
def try_out(forward: Forward, pool: SlotPool, chunk_tokens: int) -> Trial:
    """Compute prompts that nobody asked for in a free slot of the pool."""
    # An operation's first use takes milliseconds, which the first sampled answer would wait for.
    sample(torch.zeros(1, pool.info.vocab_size), [SampleKey(Sampling(temperature=1.0), 0, 0)])
    slot = pool.acquire()
    try:
        digest = _digest(forward, pool, slot, chunk_tokens)
        if not is_llama_like(forward.model):
            return Trial(digest, chunk_tokens)
        return Trial(digest, _last_rows(_Passes(forward, pool, slot, chunk_tokens)))
    finally:
        # Some of the tokens may be reserved ones, whose KV may be no numbers.
        pool.clear(slot, 0, _NUM_CHUNKS * chunk_tokens)
        pool.release(slot)


def _digest(forward: Forward, pool: SlotPool, slot: int, chunk_tokens: int) -> str:
    """SHA-256 of the KV and logits of one chunk and one decode step."""
    num_tokens = min(chunk_tokens, pool.info.context_tokens - 1)
    tokens = _tokens(pool, num_tokens + 1)
    prefilled = prefill_chunk(forward, pool, slot, tokens[:-1], 0, num_logits=1)
    assert prefilled is not None
    decoded = decode_rows(forward, pool, [DecodeRow(slot, num_tokens, tokens[-1])])
    kv = pool.snapshot(slot, 0, num_tokens + 1)
    digest = hashlib.sha256()
    for tensor in (kv.keys, kv.values, prefilled, decoded):
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _last_rows(passes: _Passes) -> int:
    """The least number of last rows that changes no bit of what one chunk after the other gives."""
    chunk_tokens = passes.chunk_tokens
    num_chunks = min(_NUM_CHUNKS, passes.pool.info.context_tokens // chunk_tokens)
    # A CPU takes the keys of a query in blocks of one size. A card may split them by how many keys and queries there
    # are, so that there one number of keys is no proof for another.
    is_telling = torch.device(passes.pool.info.device).type == "cpu" and num_chunks > 1
    narrower = [num_rows for num_rows in NARROW_ROWS if num_rows < chunk_tokens and is_telling]
    if not narrower:
        return chunk_tokens
    end = num_chunks * chunk_tokens
    *_, logits = [passes.run(start, start + chunk_tokens) for start in range(0, end, chunk_tokens)]
    kv = [tensor.clone() for tensor in passes.kv(end - chunk_tokens, end)]

    def is_same(num_rows: int) -> bool:
        """Whether they have the same KV, and the last of them the same logits; a pass writes over an unequal one's."""
        again = passes.run(end - num_rows, end)
        expected = [tensor[:, -num_rows:] for tensor in kv]
        return torch.equal(again, logits) and all(map(torch.equal, passes.kv(end - num_rows, end), expected))

    return next((num_rows for num_rows in narrower if is_same(num_rows)), chunk_tokens)


class _Passes:
    """Prefill passes over one prompt in one slot, through as many layers as tell."""

    def __init__(self, forward: Forward, pool: SlotPool, slot: int, chunk_tokens: int) -> None:
        self.pool = pool
        self.chunk_tokens = chunk_tokens
        self._forward = forward
        self._slot = slot
        self._depth = _telling_depth(forward, pool.info.num_layers)

    def run(self, start: int, stop: int) -> Tensor:
        """One pass over tokens [start, stop); the last one's logits, or nothing where not all layers are needed."""
        step = self.pool.prefill_step(self._slot, start, stop, self.chunk_tokens)
        cache = _ShallowCache(self.pool, step, self._depth)
        logits = None
        with suppress(_EnoughError):
            logits = self._forward(token_ids([_tokens(self.pool, stop)[start:]], cache), cache, 1)
        return torch.empty(0) if logits is None else logits

    def kv(self, start: int, stop: int) -> list[Tensor]:
        """Keys and values of the layers that tell, [kv_heads, tokens, dim] each."""
        tensors = (*self.pool.keys[: self._depth], *self.pool.values[: self._depth])
        return [tensor[self._slot, :, start:stop] for tensor in tensors]


def _tokens(pool: SlotPool, num_tokens: int) -> list[int]:
    return [position * 7 % pool.info.vocab_size for position in range(num_tokens)]


def _telling_depth(forward: Forward, num_layers: int) -> int:
    """How many layers' KV shows what all layers do: each shows the layers before it."""
    return min(num_layers, _TELLING_LAYERS) if is_uniform(forward.model) else num_layers


class _EnoughError(Exception):
    """The layers that tell are through."""


class _ShallowCache(StepCache):
    """Ends the forward behind the KV of the given layer, unless that is the last."""

    def __init__(self, pool: SlotPool, step: Any, depth: int) -> None:
        super().__init__(pool, step)
        self._depth = depth

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        read = super().update(keys, values, layer_idx, *args, **options)
        if layer_idx + 1 == self._depth < self.pool.info.num_layers:
            raise _EnoughError
        return read
