"""Attention over slots equals plain attention over each row's own tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semcache.daemon.engine.attention import attend, running
from semcache.daemon.engine.kv import SlotPool, StepCache
from semcache.errors import ModelLoadError
from tests.daemon.engine.test_kv import INFO, random_span

GROUP = 2  # query heads per KV head
SCALING = 0.3


def plain(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int) -> torch.Tensor:
    """Textbook attention of [heads, tokens, dim] over [kv_heads, all, dim]; [tokens, heads, dim]."""
    keys, values = keys.repeat_interleave(GROUP, 0), values.repeat_interleave(GROUP, 0)
    scores = query @ keys.transpose(1, 2) * SCALING
    num_queries, num_keys = scores.shape[1:]
    scores.masked_fill_(torch.ones(num_queries, num_keys).triu(start + 1).bool(), float("-inf"))
    return (scores.softmax(-1) @ values).transpose(0, 1)


@pytest.mark.parametrize("start", [0, 1, 9])
def test_a_prefill_chunk_sees_everything_before_it_and_nothing_behind(start: int) -> None:
    pool, past = SlotPool(INFO, 2), random_span(start + 5)
    pool.restore(1, [past])
    query, step = torch.randn(1, 6, 5, 8), pool.prefill_step(1, start, start + 5)
    new = past.slice(start, start + 5)
    keys, values = StepCache(pool, step).update(new.keys[:1], new.values[:1], 0)
    with running(step):
        output, _ = attend(nn.Module(), query, keys, values, None, scaling=SCALING)
    assert torch.allclose(output[0], plain(query[0], past.keys[0], past.values[0], start), atol=1e-5)


def test_decode_rows_see_their_own_lengths() -> None:
    pool, spans = SlotPool(INFO, 3), {2: random_span(7), 0: random_span(33)}
    for slot, span in spans.items():
        pool.restore(slot, [span])
    step, query = pool.decode_step([(2, 6), (0, 32)]), torch.randn(2, 6, 1, 8)
    with running(step):
        output, _ = attend(nn.Module(), query, pool.keys[1], pool.values[1], None, scaling=SCALING)
    assert output.shape == (2, 1, 6, INFO.value_dim)
    for row, span in enumerate(spans.values()):
        expected = plain(query[row], span.keys[1], span.values[1], span.num_tokens - 1)
        assert torch.allclose(output[row], expected, atol=1e-5)


def test_rows_of_one_run_do_not_see_what_lies_behind_their_tokens() -> None:
    pool, lengths = SlotPool(INFO, 4), (7, 33, 1, 20)
    spans = [random_span(num_tokens) for num_tokens in lengths]
    for slot, span in enumerate(spans):
        pool.keys[1][slot], pool.values[1][slot] = 1e4, 1e4  # what an earlier request left
        pool.restore(slot, [span])
    step = pool.decode_step([(slot, num_tokens - 1) for slot, num_tokens in enumerate(lengths)])
    assert len(step.runs) == 1
    query = torch.randn(4, 6, 1, 8)
    with running(step):
        output, _ = attend(nn.Module(), query, pool.keys[1], pool.values[1], None, scaling=SCALING)
    for row, span in enumerate(spans):
        expected = plain(query[row], span.keys[1], span.values[1], span.num_tokens - 1)
        assert torch.allclose(output[row], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"softcap": 50.0}, "passes 'softcap'"),
        ({"s_aux": torch.zeros(6)}, "passes 's_aux'"),
        ({"sliding_window": 100}, "slides over 100 tokens, less than the served context of 256"),
        ({"is_causal": False}, "not causal"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_an_argument_we_do_not_implement_is_refused_by_name(arguments: dict[str, object], sentence: str) -> None:
    pool = SlotPool(INFO, 1)
    kv = (pool.keys[0][:, :, :2], pool.values[0][:, :, :2])
    with running(pool.prefill_step(0, 0, 2)), pytest.raises(ModelLoadError, match=sentence):
        attend(nn.Module(), torch.randn(1, 6, 2, 8), *kv, None, **arguments)


def test_a_mask_and_a_bidirectional_module_are_refused() -> None:
    pool, module = SlotPool(INFO, 1), nn.Module()
    step, query = pool.prefill_step(0, 0, 2), torch.randn(1, 6, 2, 8)
    kv = (pool.keys[0][:, :, :2], pool.values[0][:, :, :2])
    with running(step), pytest.raises(ModelLoadError, match="attention mask of its own"):
        attend(module, query, *kv, torch.zeros(2, 2))
    module.is_causal = False
    with running(step), pytest.raises(ModelLoadError, match="not causal"):
        attend(module, query, *kv, None)


def test_arguments_without_effect_are_accepted() -> None:
    pool, query = SlotPool(INFO, 1), torch.randn(1, 6, 2, 8)
    pool.restore(0, [random_span(2)])
    step, kv = pool.prefill_step(0, 0, 2), (pool.keys[0][:, :, :2], pool.values[0][:, :, :2])
    harmless = {"sliding_window": 256, "position_ids": torch.arange(2), "softcap": None}
    with running(step):
        output, weights = attend(nn.Module(), query, *kv, None, **harmless)
    expected = F.scaled_dot_product_attention(query, *kv, is_causal=True, enable_gqa=True)
    assert torch.equal(output, expected.transpose(1, 2))
    assert weights is None
