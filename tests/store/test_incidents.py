"""Counted always, logged without flooding."""

from __future__ import annotations

import logging

import pytest

from semcache.store.incidents import Incidents


def test_damage_is_logged_each_time_and_failures_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    incidents = Incidents()
    with caplog.at_level(logging.WARNING, "semcache.store"):
        for _ in range(3):
            incidents.damage("damaged_blocks", "block ab", "checksum does not match")
            incidents.failure("write_failures", "block ab", OSError("No space left on device"))
        incidents.failure("read_failures", "block ab", "x")
        incidents.count("evicted_blocks", 5)
    assert incidents.snapshot() == {
        "damaged_blocks": 3, "write_failures": 3, "read_failures": 1, "evicted_blocks": 5,
    }  # fmt: skip
    assert [record.message.split(" ")[0] for record in caplog.records].count("write_failures") == 1
    assert len(caplog.records) == 5
