"""How many slots fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from semcache.daemon.engine.memory import free_bytes, slots_that_fit
from semcache.errors import ModelLoadError
from tests.daemon.engine.test_kv import INFO

SLOT_BYTES = INFO.kv_bytes_per_token * INFO.context_tokens


@pytest.mark.parametrize(("num_fitting", "num_slots"), [(1, 1), (3, 2), (8, 8), (31, 16), (1000, 32)])
def test_the_largest_choice_within_85_percent(num_fitting: int, num_slots: int) -> None:
    free = int(num_fitting * SLOT_BYTES / 0.85) + 1
    chosen, text = slots_that_fit(INFO, free)
    assert chosen == num_slots
    assert f"{num_slots} slots: 288 B of KV per token × 256 tokens" in text


def test_no_slot_says_what_to_lower() -> None:
    with pytest.raises(ModelLoadError, match=r"lower engine\.max_context_tokens below 256"):
        slots_that_fit(INFO, SLOT_BYTES)


def test_the_allocation_counts_not_the_context() -> None:
    assert "× 128 tokens" in slots_that_fit(replace(INFO, context_tokens=65), 1 << 30)[1]


def test_this_machine_has_memory() -> None:
    assert 0 < free_bytes("cpu") < 1 << 50
