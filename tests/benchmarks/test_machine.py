"""A quiet moment is one in which nothing else computes."""

from __future__ import annotations

import pytest

from benchmarks import machine


def test_it_is_quiet_once_little_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([(0, 0), (15, 20), (20, 40), (22, 60), (99, 80)])  # three quarters, a quarter, a tenth
    monkeypatch.setattr(machine, "_processor_time", lambda: next(seen))
    assert machine.until_quiet(timeout_s=60, window_s=0)
    assert next(seen) == (99, 80)


def test_it_is_not_waited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr(machine, "_processor_time", lambda: (next(ticks), 1))
    assert not machine.until_quiet(window_s=0, timeout_s=0.01)


def test_processor_time_only_grows() -> None:
    first = machine._processor_time()
    busy, total = machine._processor_time()
    assert first[0] <= busy <= total
    assert first[1] <= total
