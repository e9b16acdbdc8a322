"""Where chunks begin and end, and what a chunk computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from semcache.daemon.cuts import Cuts
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.prefill import next_stop, prefill_chunk


@pytest.mark.parametrize(
    ("start", "num_tokens", "stop"), [(0, 40, 16), (16, 40, 32), (32, 40, 40), (0, 5, 5), (20, 40, 32), (16, 32, 32)]
)
def test_chunks_end_at_multiples_of_the_chunk(start: int, num_tokens: int, stop: int) -> None:
    assert next_stop(start, num_tokens, 16, Cuts(16, 16)) == stop


@pytest.mark.parametrize(("start", "num_tokens", "stop"), [(0, 40, 16), (5, 40, 21), (39, 40, 40), (30, 40, 40)])
def test_where_any_cut_will_do_a_chunk_is_full_wherever_it_begins(start: int, num_tokens: int, stop: int) -> None:
    assert next_stop(start, num_tokens, 16, Cuts(1, 1)) == stop


def test_a_chunk_in_the_middle_computes_no_logits(loaded: Callable[..., LoadedModel]) -> None:
    model, forward, info = loaded().model, loaded().forward, loaded().info
    pool = SlotPool(info, 1)
    with torch.inference_mode():
        assert prefill_chunk(forward, pool, 0, list(range(16)), 0, num_logits=0) is None
        logits = prefill_chunk(forward, pool, 0, list(range(16, 20)), 16, num_logits=1)
        model.set_attn_implementation("sdpa")
        stock = model(torch.arange(20)[None]).logits[0, -1]
        model.set_attn_implementation("semcache_slots")
    assert logits is not None
    assert torch.allclose(logits, stock, atol=1e-4)
