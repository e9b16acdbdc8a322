"""How many slots fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from semcache.daemon.engine import memory
from semcache.daemon.engine.memory import free_bytes, lacking, slots_that_fit
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


def test_slots_set_by_hand_are_compared_with_what_is_free() -> None:
    assert lacking(INFO, 3, 3 * SLOT_BYTES) is None
    text = lacking(INFO, 3, 3 * SLOT_BYTES - 1)
    assert text is not None
    assert text.startswith("engine.slots = 3 takes 0.00 GiB where all are full, and 0.00 GiB are free on cpu")


def test_the_allocation_counts_not_the_context() -> None:
    assert "× 128 tokens" in slots_that_fit(replace(INFO, context_tokens=65), 1 << 30)[1]


def test_this_machine_has_memory() -> None:
    assert 0 < free_bytes("cpu") < 1 << 50


@pytest.mark.parametrize(
    ("limit", "stat", "num_left"),
    [
        ("1000", "anon 700\nfile 200\ninactive_file 150\nactive_file 50\n", 250),  # page cache that can be taken back
        ("1000", "anon 700\n", 100),
        ("max", "inactive_file 150\n", 1 << 62),
    ],
)
def test_what_a_containers_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, stat: str, num_left: int
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory._cgroup_bytes_left() == 1 << 62
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text(stat)
    assert memory._cgroup_bytes_left() == num_left
