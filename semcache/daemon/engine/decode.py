"""Decode: one token for every running row in one forward, each row at its own position in its own slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from semcache.daemon.engine.forward import Forward, Pass, token_ids
from semcache.daemon.engine.kv import SlotPool, StepCache


@dataclass(frozen=True)
class DecodeRow:
    """The newest token of one request and where its KV goes."""

    slot: int
    position: int
    token: int


def decode_pass(pool: SlotPool, rows: Sequence[DecodeRow]) -> Pass:
    """Write the KV of each row's token; gives logits [rows, 1, vocab].

    Rows are best ordered by slot: neighbours share what attention reads.
    """
    cache = StepCache(pool, pool.decode_step([(row.slot, row.position) for row in rows]))
    return Pass(token_ids([[row.token] for row in rows], cache), cache, 1)


def decode_rows(forward: Forward, pool: SlotPool, rows: Sequence[DecodeRow]) -> Tensor:
    """A `decode_pass` of its own; the logits behind each row's token, [rows, vocab]."""
    logits = forward(*decode_pass(pool, rows))
    assert logits is not None
    return logits[:, -1]
