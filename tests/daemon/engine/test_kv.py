"""Slots: what is copied in and out, and where a step writes."""

from __future__ import annotations

import math
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semcache.daemon.engine.kv import SlotPool, StepCache, slot_capacity
from semcache.daemon.engine.model import ModelInfo
from semcache.errors import EngineError, ModelLoadError
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import CONTEXT_TOKENS

INFO = ModelInfo(
    name="tiny",
    folder_id="tiny",
    architecture="X",
    num_parameters=1,
    num_layers=2,
    num_kv_heads=3,
    key_dim=8,
    value_dim=4,
    vocab_size=9,
    context_tokens=CONTEXT_TOKENS,
    device="cpu",
    dtype="float32",
    fingerprint="f",
    kv_bytes_per_token=288,
    weights_bytes=1,
    eos_token_ids=(),
    pad_token_id=0,
)


def random_span(num_tokens: int, info: ModelInfo = INFO) -> KVSpan:
    head, dtype = (info.num_layers, info.num_kv_heads, num_tokens), getattr(torch, info.dtype)
    return KVSpan(torch.randn(*head, info.key_dim).to(dtype), torch.randn(*head, info.value_dim).to(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_restored_spans_come_back_bit_for_bit(dtype: str) -> None:
    info = replace(INFO, dtype=dtype)
    pool, spans = SlotPool(info, 2), [random_span(5, info), random_span(7, info)]
    slot = pool.acquire()
    assert pool.restore(slot, spans) == 12
    back = pool.snapshot(slot, 0, 12)
    assert torch.equal(back.keys, torch.cat([span.keys for span in spans], dim=2))
    assert torch.equal(back.values, torch.cat([span.values for span in spans], dim=2))
    assert back.keys.is_contiguous()
    assert torch.equal(pool.snapshot(slot, 5, 12).values, spans[1].values)


def test_a_pool_that_does_not_fit_says_what_to_lower() -> None:
    with pytest.raises(ModelLoadError, match=r"lower engine\.slots or engine\.max_context_tokens"):
        SlotPool(replace(INFO, context_tokens=1 << 44), 32)


def test_a_snapshot_is_a_copy() -> None:
    pool = SlotPool(INFO, 1)
    pool.restore(0, [random_span(4)])
    before = pool.snapshot(0, 0, 4)
    kept = before.keys.clone()
    pool.restore(0, [random_span(4)])
    assert torch.equal(before.keys, kept)


def test_memory_is_touched_where_the_next_prompt_goes_and_no_further() -> None:
    pool = SlotPool(INFO, 3)
    for tensor in (*pool.keys, *pool.values):
        tensor.fill_(math.nan)
    taken = pool.acquire()
    pool.touch(5 * INFO.kv_bytes_per_token + 1)
    following = pool.acquire()
    [other] = {0, 1, 2} - {taken, following}
    for tensor in (*pool.keys, *pool.values):
        assert not tensor[following, :, :5].any()
        assert tensor[following, :, 5:].isnan().all()
        assert tensor[[taken, other]].isnan().all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_short_prompt_takes_little_memory_of_a_long_slot() -> None:
    """Of huge pages, every one would be touched."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    info = replace(INFO, num_layers=4, context_tokens=32_768)
    before, pool = resident_bytes(), SlotPool(info, 8)
    assert sum(tensor.nbytes for tensor in (*pool.keys, *pool.values)) > 150e6
    for slot in range(8):
        pool.clear(slot, 0, 16)
    assert resident_bytes() - before < 10e6


def test_restoring_behind_other_tokens_leaves_them_alone() -> None:
    pool, first, second = SlotPool(INFO, 1), random_span(6), random_span(3)
    pool.restore(0, [first])
    assert pool.restore(0, [second], start=4) == 7
    assert torch.equal(pool.snapshot(0, 0, 4).keys, first.keys[:, :, :4])
    assert torch.equal(pool.snapshot(0, 4, 7).keys, second.keys)


@pytest.mark.parametrize("wrong", [{"num_layers": 1}, {"num_kv_heads": 2}, {"key_dim": 9}, {"dtype": "bfloat16"}])
def test_a_span_of_another_model_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(EngineError, match="not of this model"):
        SlotPool(INFO, 1).check(random_span(2, replace(INFO, **wrong)))


def test_a_prefill_step_writes_its_positions_of_its_slot_only() -> None:
    pool = SlotPool(INFO, 3)
    for tensor in (*pool.keys, *pool.values):
        tensor.zero_()
    keys, values = torch.randn(1, 3, 4, 8), torch.randn(1, 3, 4, 4)
    seen_keys, seen_values = StepCache(pool, pool.prefill_step(1, 6, 10)).update(keys, values, 1)
    assert seen_keys.shape == (1, 3, 10, 8)
    assert torch.equal(seen_keys[:, :, 6:], keys)
    assert torch.equal(seen_values[:, :, 6:], values)
    assert int(pool.keys[0].count_nonzero()) == 0
    assert int(pool.keys[1].count_nonzero()) == keys.numel()


def test_a_decode_step_writes_each_row_at_its_own_position() -> None:
    pool = SlotPool(INFO, 3)
    keys, values = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 1, 4)
    StepCache(pool, pool.decode_step([(2, 5), (0, 63)])).update(keys, values, 0)
    assert torch.equal(pool.keys[0][2, :, 5], keys[0, :, 0])
    assert torch.equal(pool.values[0][0, :, 63], values[1, :, 0])


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        ([(0, 5)], [(0, 1)]),
        ([(0, 5), (1, 60), (2, 7)], [(0, 3)]),
        ([(0, 5), (2, 6), (3, 7)], [(0, 1), (1, 3)]),  # a slot between them belongs to somebody else
        ([(1, 5), (0, 6)], [(0, 1), (1, 2)]),
        ([(0, 900), (1, 9), (2, 8), (3, 7)], [(0, 1), (1, 4)]),  # the long one's keys would be read four times
        ([(0, 900), (1, 800), (2, 700)], [(0, 3)]),
    ],
)
def test_neighbours_of_like_length_share_a_run(rows: list[tuple[int, int]], runs: list[tuple[int, int]]) -> None:
    step = SlotPool(INFO, 4, 1024).decode_step(rows)
    assert [(run.start, run.stop) for run in step.runs] == runs
    for run in step.runs:
        lengths = [position + 1 for _, position in rows[run.start : run.stop]]
        assert run.slot == rows[run.start][0]
        assert run.num_tokens == max(lengths)
        if run.mask is None:
            assert min(lengths) == run.num_tokens
        else:
            assert (run.mask == 0).sum(-1).flatten().tolist() == lengths


def test_a_new_pool_holds_numbers_only() -> None:
    for dtype in ("float32", "bfloat16"):
        pool = SlotPool(replace(INFO, dtype=dtype), 2)
        assert pool.keys[0].dtype == getattr(torch, dtype)
        assert not any(tensor.count_nonzero() for tensor in (*pool.keys, *pool.values))


def test_slots_are_allocated_on_a_common_boundary() -> None:
    assert [slot_capacity(n) for n in (1, 64, 65)] == [64, 64, 128]


@pytest.mark.parametrize("num_sharing", [1, 3])
def test_the_mask_of_a_chunk_is_causal_from_the_lower_right_for_each_head(num_sharing: int) -> None:
    step = SlotPool(INFO, 1).prefill_step(0, 2, 5)
    mask = step.mask(step.chunks[0], num_sharing, torch.empty(0))
    allowed = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert (mask == 0).tolist() == num_sharing * [[bool(cell) for cell in row] for row in allowed]
    assert step.mask(step.chunks[0], num_sharing, torch.empty(0)) is mask  # all layers share it


def test_a_wide_step_has_the_chunks_that_it_would_have_alone() -> None:
    pool = SlotPool(INFO, 1)
    alone = [*pool.prefill_step(0, 4, 8).chunks, *pool.prefill_step(0, 8, 12).chunks]
    assert list(pool.prefill_step(0, 4, 12, 4).chunks) == alone == [(4, 8), (8, 12)]
