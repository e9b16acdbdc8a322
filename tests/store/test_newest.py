"""What is too old is found through an index and leaves a batch at a time."""

from __future__ import annotations

import pytest

from semcache.store import newest, usage
from semcache.store.store import Store

from .samples import decision, usage_record


def test_no_row_is_read_but_those_that_leave(store: Store) -> None:
    statements: list[str] = []
    store._db.connection.set_trace_callback(statements.append)
    store.record_request(usage_record(1))
    store.decisions.record([decision(1)])
    store._db.connection.set_trace_callback(None)
    changes = [sql for sql in statements if sql.startswith(("INSERT INTO requests", "INSERT INTO decisions", "DELETE"))]
    assert len(changes) == 6
    plans = [row["detail"] for sql in changes for row in store._db.rows(f"EXPLAIN QUERY PLAN {sql}")]
    assert sum("_end" in plan for plan in plans) >= 4
    assert [plan for plan in plans if plan.startswith("SCAN") and plan != "SCAN CONSTANT ROW"] == []


def test_what_is_too_large_leaves_batch_by_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "BATCH_ROWS", 3)
    for number in range(8):
        store.record_request(usage_record(number))
    monkeypatch.setattr(usage, "MAX_HISTORY_BYTES", 1)
    for number, num_left in ((8, 6), (9, 4), (10, 2), (11, 1), (12, 1)):
        store.record_request(usage_record(number))
        left = [row.id for row in store.recent_requests()]
        assert left == [f"req_{number - i}" for i in range(num_left)]


def test_history_goes_on_whatever_a_damaged_row_says_was_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_HISTORY_BYTES", 10_000)
    for number, damaged in enumerate(("'text'", "x'ff'", "9e999", "1 << 62", "-5", "'text'")):
        store.record_request(usage_record(number))
        with store._db.transaction() as connection:
            connection.execute(f"UPDATE requests SET end_bytes = {damaged}")
        store.record_request(usage_record(100 + number))
        store.record_request(usage_record(200 + number))
        assert f"req_{200 + number}" in [row.id for row in store.recent_requests()]
