"""The arithmetic of the summary on hand-made records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semcache.replay.dataset import Dataset, Row
from semcache.replay.summary import Measured, percentiles, summarise

DATASET = Dataset(Path("x.json"), "0" * 64, [Row("q", None, None, None, None, 1)])


def summary(records: list[Any], baseline: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    settings = {"baseline": baseline is not None} | more.pop("settings", {})
    return summarise(Measured(DATASET, settings, records, baseline or [], **more))


def test_contract_keys():
    found = summary([])
    wanted = (
        "schema dataset settings requests errors outcomes answer_hits compute_hits speedup wrong_hits tokens "
        "throughput memory cost"
    )
    assert set(wanted.split()) <= found.keys()
    assert found["schema"] == "semcache.replay/1"
    assert list(found["outcomes"]) == ["exact", "semantic", "draft", "prefix", "miss"]
    assert set(found["dataset"]) == {"path", "sha256", "rows"}


def test_nothing_measured_is_null_not_zero():
    found = summary([])
    assert found["speedup"] == {"overall": None, "ttft": None, "control": None}
    assert found["tokens"] == dict.fromkeys(("prompt", "cached", "completion", "drafted", "accepted"))
    assert found["throughput"] == {"requests_per_s": None, "tokens_per_s": None}
    assert found["memory"] == {"peak_mb": None, "series": None}
    assert found["cost"] is None
    assert found["answer_share"] is None


def test_percentiles_are_nearest_rank():
    assert percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([3.0, None, 1.0]) == {"p50": 1.0, "p95": 3.0, "p99": 3.0}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}


def test_shares_are_of_all_requests_and_the_two_sums_stay_apart(make_record):
    outcomes = ["exact", "semantic", "draft", "prefix", "miss", "miss", "miss", None]
    found = summary([make_record(outcome, index=at) for at, outcome in enumerate(outcomes)])
    assert (found["requests"], found["errors"], found["error_share"]) == (8, 1, 0.125)
    assert (found["answer_hits"], found["compute_hits"]) == (2, 4)
    assert (found["answer_share"], found["compute_share"]) == (0.25, 0.5)
    assert found["outcomes"]["miss"]["share"] == 0.375
    assert found["overall"]["n"] == 7


def test_speedup_against_the_misses(make_record):
    times = [("miss", 100), ("miss", 100), ("exact", 10), ("exact", 10), ("exact", 30)]
    found = summary([make_record(o, index=at, total_ms=ms, ttft_ms=ms / 2) for at, (o, ms) in enumerate(times)])
    assert found["outcomes"]["exact"]["speedup"] == {"total": 10.0, "ttft": 10.0}
    assert found["outcomes"]["miss"]["speedup"] == {"total": 1.0, "ttft": 1.0}
    # The whole run took 250 ms of answers where 5 misses take 500.
    assert found["speedup"]["overall"] == pytest.approx(2.0)
    assert "misses" in found["settings"]["speedup"]["reference"]


def test_speedup_against_the_baseline_of_the_same_prompts(make_record):
    run = [make_record("exact", index=0, total_ms=10), make_record("miss", index=1, total_ms=200)]
    cold = [make_record("miss", index=at, total_ms=ms, phase="baseline") for at, ms in enumerate((40, 200))]
    found = summary(run, cold)
    assert found["outcomes"]["exact"]["speedup"]["total"] == 4.0
    assert found["outcomes"]["miss"]["speedup"]["total"] == 1.0
    assert found["speedup"]["overall"] == pytest.approx(240 / 210)
    assert found["baseline"]["total_ms"]["p99"] == 200


def test_without_misses_there_is_no_speedup(make_record):
    found = summary([make_record("exact")])
    assert found["speedup"]["overall"] is None
    assert found["outcomes"]["exact"]["speedup"]["total"] is None


def test_correct_is_a_rate_of_what_was_checked(make_record):
    marks = [True, True, False, None]
    found = summary([make_record(index=at, correct=mark) for at, mark in enumerate(marks)])
    assert (found["overall"]["correct"], found["overall"]["checked"]) == (pytest.approx(2 / 3), 3)


def test_wrong_hits(make_record):
    marks = [True, False, False, None]
    records = [make_record("semantic", index=at, wrong=mark, reference="baseline" if mark is not None else None)
               for at, mark in enumerate(marks)]  # fmt: skip
    wrong = summary(records)["wrong_hits"]
    assert (wrong["checked"], wrong["wrong"], wrong["rate"]) == (3, 1, pytest.approx(1 / 3))
    assert wrong["ci95"][0] < 1 / 3 < wrong["ci95"][1]


def test_tokens_throughput_and_cost(make_record):
    records = [make_record(index=at, at_s=at * 0.5, total_ms=500) for at in range(4)]
    found = summary(records, cost_per_hour=1.8)
    assert found["tokens"] == {"prompt": 40, "cached": 0, "completion": 12, "drafted": 0, "accepted": 0}
    assert found["duration_s"] == 2.0
    assert found["throughput"] == {"requests_per_s": 2.0, "tokens_per_s": 6.0}
    assert found["cost"]["total"] == pytest.approx(0.001)
    assert found["cost"]["per_1000_requests"] == pytest.approx(0.25)


def test_another_server_has_only_the_outcome_unknown(make_record):
    found = summary([make_record("unknown")], settings={"target": "http://x"})
    assert list(found["outcomes"]) == ["unknown"]
    assert found["answer_hits"] is None
    assert found["compute_hits"] is None


def decoded(record: Any, decode_ms: float) -> Any:
    return replace(record, reply=replace(record.reply, timing_ms={"decode": decode_ms}))


@pytest.mark.parametrize(("cold_ms", "control"), [(100.0, 1.0), (1180.0, 11.8), (4.0, 0.04)])
def test_misses_are_the_control_of_the_baseline(make_record, cold_ms, control):
    run = [decoded(make_record("miss", index=0), 100.0), decoded(make_record("exact", index=1), 0.1)]
    cold = [decoded(make_record("miss", index=at, phase="baseline"), cold_ms) for at in range(2)]
    assert summary(run, cold)["speedup"]["control"] == pytest.approx(control)


def test_without_baseline_or_misses_there_is_no_control(make_record):
    assert summary([decoded(make_record("miss"), 5.0)])["speedup"]["control"] is None
    cold = [decoded(make_record("miss", phase="baseline"), 5.0)]
    assert summary([make_record("exact")], cold)["speedup"]["control"] is None
