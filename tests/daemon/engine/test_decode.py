"""One batched step: every row as if it were alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from semcache.daemon.engine.decode import DecodeRow, decode_rows
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.prefill import prefill_chunk
from tests.daemon.engine.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_lengths_give_the_stock_models_logits(
    loaded: Callable[..., LoadedModel], family: str
) -> None:
    model, forward, info = loaded(family).model, loaded(family).forward, loaded(family).info
    pool, prompts = SlotPool(info, 4), {3: [5, 6, 7], 0: list(range(40)), 1: [9]}
    with torch.inference_mode():
        for slot, tokens in prompts.items():
            prefill_chunk(forward, pool, slot, tokens, 0, num_logits=0)
        rows = [DecodeRow(slot, len(tokens), 100 + slot) for slot, tokens in prompts.items()]
        logits = decode_rows(forward, pool, rows)
        model.set_attn_implementation("sdpa")
        for row, tokens in enumerate(prompts.values()):
            stock = model(torch.tensor([[*tokens, rows[row].token]])).logits[0, -1]
            assert torch.allclose(logits[row], stock, atol=1e-4)
        model.set_attn_implementation("semcache_slots")
