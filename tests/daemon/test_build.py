"""Automatic budgets follow what the process may use, and the parts that must agree share what they know."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from semcache.config import Config
from semcache.daemon import build
from semcache.errors import ModelLoadError


def test_the_ram_tier_takes_a_tenth_of_what_the_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "memory_bytes", lambda: 4 << 30)
    config = Config()
    assert build.store_limits(config).ram_bytes == (4 << 30) // 10
    set_by_hand = replace(config, cache=replace(config.cache, ram_bytes=7, disk_bytes=9))
    limits = build.store_limits(set_by_hand)
    assert (limits.ram_bytes, limits.disk_bytes) == (7, 9)


def test_what_waits_for_the_disk_may_be_a_quarter_of_the_ram_tier_and_never_little() -> None:
    def queue_bytes(ram_bytes: int) -> int:
        config = Config()
        return build.store_limits(replace(config, cache=replace(config.cache, ram_bytes=ram_bytes))).write_queue_bytes

    assert queue_bytes(4 << 30) == 1 << 30
    assert queue_bytes(7) == 128 << 20


def test_slots_that_are_set_by_hand_are_made_and_those_that_do_not_fit_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "free_bytes", lambda device: 0)
    config = Config()
    by_hand = replace(config, engine=replace(config.engine, slots=3, max_context_tokens=256))
    assert build.load_engine(by_hand, lambda stage, share: None).num_slots == 3
    assert "engine.slots = 3 takes" in caplog.text
    with pytest.raises(ModelLoadError, match="no slot for mini fits"):
        build.load_engine(config, lambda stage, share: None)


async def test_look_up_and_lessons_know_the_same_marked_pairs(tmp_path: Path) -> None:
    daemon = build.build(
        Config(), tmp_path / "data", socket=tmp_path / "socket", autostarted=False,
        event_loop=asyncio.get_running_loop(), on_progress=lambda stage, share: None, shut_down=lambda timeout_s: None,
    )  # fmt: skip
    assert daemon.service._lookup._marks is daemon.service._lessons._marks
    daemon.pool.shutdown()
    daemon.store.close()
