"""Slots: preallocated KV of every running request, and the cache object through which the model writes into them.

A step says which rows of the pool a forward works on. Knows nothing of requests; restoring is a copy into a slot.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from semcache.errors import EngineError, ModelLoadError
from semcache.store.tensors import KVSpan

if TYPE_CHECKING:
    from semcache.daemon.engine.model import ModelInfo

# Slots start on the same boundary in memory whatever the context, so that a row's kernels never depend on its slot.
_CAPACITY_MULTIPLE = 64
# A call of its own costs a row about as much as reading so many tokens (135M shape, two cores: 25 us).
_MAX_PADDING_TOKENS = 128
# Linux refuses a mapping of more than the machine's memory unless it is told that not all of it will be used; Python
# has no name for that before 3.13.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


class Chunk(NamedTuple):
    """Tokens [start, stop) of a prompt."""

    start: int
    stop: int


@dataclass(frozen=True)
class PrefillStep:
    """Tokens [start, stop) of the row in `slot`: one chunk of a prompt, or several, whose attention is kept apart."""

    slot: int
    start: int
    stop: int
    context_tokens: int
    chunks: tuple[Chunk, ...]
    position_ids: Tensor  # [1, stop - start]
    rows: None = None
    _masks: dict[tuple[Chunk, int], Tensor] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each chunk."""
        return [chunk.stop - chunk.start for chunk in self.chunks]

    def mask(self, chunk: Chunk, num_sharing: int, like: Tensor) -> Tensor:
        """What SDPA adds to the scores of a chunk, [num_sharing * tokens, stop]; all layers share it.

        Token i sees what lies before the chunk, and the chunk up to itself; `num_sharing` heads are one below the
        other.
        """
        if (mask := self._masks.get((chunk, num_sharing))) is None:
            num_tokens = chunk.stop - chunk.start
            mask = torch.zeros(num_sharing, num_tokens, chunk.stop, dtype=like.dtype, device=like.device)
            hidden = torch.full((num_tokens, num_tokens), float("-inf"), dtype=like.dtype, device=like.device)
            mask[:, :, chunk.start :] = hidden.triu_(1)
            mask = self._masks[chunk, num_sharing] = mask.view(-1, chunk.stop)
        return mask


class Run(NamedTuple):
    """Rows of a decode step in neighbouring slots; one attention call reads as much of each as of the longest."""

    start: int  # rows [start, stop) of the step
    stop: int
    slot: int  # of the first
    num_tokens: int  # of the longest
    mask: Tensor | None  # [stop - start, 1, 1, num_tokens], None where all are as long


@dataclass(frozen=True)
class DecodeStep:
    """One token for each row; a row is its slot and how many tokens it holds once this step is written."""

    rows: tuple[tuple[int, int], ...]
    runs: tuple[Run, ...]
    slots: Tensor  # [rows]
    positions: Tensor  # [rows]
    context_tokens: int

    @property
    def position_ids(self) -> Tensor:
        return self.positions[:, None]  # [rows, 1]

    @property
    def sizes(self) -> list[int]:
        """All rows are computed alike."""
        return [len(self.rows)]


class SlotPool:
    """Keys and values of `num_slots` rows, per layer, on the model's device."""

    def __init__(self, info: ModelInfo, num_slots: int, capacity_tokens: int | None = None) -> None:
        self.info = info
        self.num_slots = num_slots
        dtype, device = getattr(torch, info.dtype), torch.device(info.device)
        capacity = slot_capacity(capacity_tokens or info.context_tokens)
        shape = (info.num_layers, num_slots, info.num_kv_heads, capacity)
        try:
            # One tensor each, so that a span is one copy: copying layer by layer, each block took a millisecond, and
            # ten times as long where another thread wanted the interpreter between two layers.
            self._keys = _zeros((*shape, info.key_dim), dtype, device)
            self._values = _zeros((*shape, info.value_dim), dtype, device)
        except (RuntimeError, MemoryError, OSError) as error:  # out of memory, on every device
            size = num_slots * capacity * info.kv_bytes_per_token / 2**30
            raise ModelLoadError(
                f"{num_slots} slots of {info.context_tokens} tokens need {size:.1f} GiB on {info.device}, which are "
                "not free; lower engine.slots or engine.max_context_tokens"
            ) from error
        self.keys, self.values = list(self._keys), list(self._values)  # by layer
        self._free = list(reversed(range(num_slots)))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def acquire(self) -> int:
        """Take a free slot; what it holds is of no use, but finite."""
        if not self._free:
            raise EngineError(f"all {self.num_slots} slots are taken; release a request before the next begins")
        return self._free.pop()

    def release(self, slot: int) -> None:
        """Give a slot back."""
        assert 0 <= slot < self.num_slots, slot
        assert slot not in self._free, slot
        self._free.append(slot)

    def touch(self, size_bytes: int) -> None:
        """Write to as much of the memory that the next prompt's KV goes to: later that would take long (buffers.py)."""
        if self.keys[0].device.type == "cpu":
            self.clear(self._free[-1], 0, size_bytes // self.info.kv_bytes_per_token)

    def clear(self, slot: int, start: int, stop: int) -> None:
        """Forget what tokens [start, stop) left, which may be no numbers: 0 times NaN is NaN behind a mask too."""
        for tensor in (self._keys, self._values):
            tensor[:, slot, :, start:stop].zero_()

    def check(self, span: KVSpan) -> None:
        """Raise unless the span has this model's shape and dtype; a silent cast would break bit-identity."""
        info = self.info
        head = (info.num_layers, info.num_kv_heads, span.num_tokens)
        dtype = self.keys[0].dtype
        fits = span.keys.shape == (*head, info.key_dim) and span.values.shape == (*head, info.value_dim)
        if not fits or span.keys.dtype != dtype or span.values.dtype != dtype:
            raise EngineError(
                f"restored KV {tuple(span.keys.shape)} {span.keys.dtype} is not of this model: {head} {dtype}"
            )

    def restore(self, slot: int, spans: Sequence[KVSpan], start: int = 0) -> int:
        """Copy spans one behind the other into the slot, from position `start`; returns the position behind them."""
        for span in spans:
            stop = start + span.num_tokens
            self._keys[:, slot, :, start:stop].copy_(span.keys, non_blocking=True)
            self._values[:, slot, :, start:stop].copy_(span.values, non_blocking=True)
            start = stop
        return start

    def snapshot(self, slot: int, start: int, stop: int) -> KVSpan:
        """Host copy of tokens [start, stop) of a slot."""
        info, num_tokens = self.info, stop - start
        head = (info.num_layers, info.num_kv_heads, num_tokens)
        keys = torch.empty(*head, info.key_dim, dtype=self.keys[0].dtype)
        values = torch.empty(*head, info.value_dim, dtype=self.values[0].dtype)
        keys.copy_(self._keys[:, slot, :, start:stop])
        values.copy_(self._values[:, slot, :, start:stop])
        return KVSpan(keys, values)

    def prefill_step(self, slot: int, start: int, stop: int, chunk_tokens: int | None = None) -> PrefillStep:
        """The step for one prefill chunk, or for several of `chunk_tokens`."""
        starts = range(start, stop, chunk_tokens or stop - start)
        chunks = tuple(Chunk(first, min(first + starts.step, stop)) for first in starts)
        positions = torch.arange(start, stop, device=self.keys[0].device)[None]
        return PrefillStep(slot, start, stop, self.info.context_tokens, chunks, positions)

    def decode_step(self, rows: Sequence[tuple[int, int]]) -> DecodeStep:
        """The step for one token in each of `rows`: (slot, position of the new token).

        Attention takes neighbouring rows in one call, so rows are best ordered by slot.
        """
        device = self.keys[0].device
        slots = torch.tensor([slot for slot, _ in rows], device=device)
        positions = torch.tensor([position for _, position in rows], device=device)
        lengths = tuple((slot, position + 1) for slot, position in rows)
        runs = tuple(self._run(lengths, start, stop) for start, stop in _runs(lengths))
        return DecodeStep(lengths, runs, slots, positions, self.info.context_tokens)

    def _run(self, rows: Sequence[tuple[int, int]], start: int, stop: int) -> Run:
        like, lengths = self.keys[0], [num_tokens for _, num_tokens in rows[start:stop]]
        longest, mask = max(lengths), None
        if min(lengths) < longest:
            hidden = torch.arange(longest)[None] >= torch.tensor(lengths)[:, None]
            mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            mask = mask[:, None, None].to(like.device)
        return Run(start, stop, rows[start][0], longest, mask)


class StepCache:
    """What the model gets as `past_key_values`: writes new KV in place, nothing is ever concatenated."""

    is_compileable = False

    def __init__(self, pool: SlotPool, step: PrefillStep | DecodeStep) -> None:
        self.pool = pool
        self.step = step

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write this step's keys and values [batch, kv_heads, tokens, dim]; returns what attention reads."""
        pool_keys, pool_values, step = self.pool.keys[layer_idx], self.pool.values[layer_idx], self.step
        if isinstance(step, PrefillStep):
            row_keys, row_values = pool_keys[step.slot], pool_values[step.slot]
            row_keys[:, step.start : step.stop] = keys[0]
            row_values[:, step.start : step.stop] = values[0]
            return row_keys[None, :, : step.stop], row_values[None, :, : step.stop]
        pool_keys[step.slots, :, step.positions] = keys[:, :, 0]
        pool_values[step.slots, :, step.positions] = values[:, :, 0]
        return pool_keys, pool_values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this step; only asked by modules that do not use the position ids they were given."""
        return self.step.start if isinstance(self.step, PrefillStep) else max(n for _, n in self.step.rows) - 1


def _runs(rows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where each run of rows begins and ends: slots one behind the other, of lengths alike enough."""
    runs: list[tuple[int, int]] = []
    start, longest, total = 0, 0, 0
    for row, (slot, num_tokens) in enumerate(rows):
        longest, total, num_rows = max(longest, num_tokens), total + num_tokens, row - start + 1
        is_next = row > start and slot == rows[row - 1][0] + 1
        if row > start and not (is_next and longest * num_rows - total <= _MAX_PADDING_TOKENS * num_rows):
            runs.append((start, row))
            start, longest, total = row, num_tokens, num_tokens
    return [*runs, (start, len(rows))]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory before they are written, and then as many small pages as they need.

    In huge pages, which numpy asks for, a short prompt touches one for every two heads of every layer: 1.4 GB for 8
    slots of 128 tokens instead of 46 MB, and a first chunk of 700 ms instead of 200 (135M, 4,300 tokens of context).
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def slot_capacity(context_tokens: int) -> int:
    """Tokens a slot is allocated for."""
    return -(-context_tokens // _CAPACITY_MULTIPLE) * _CAPACITY_MULTIPLE
