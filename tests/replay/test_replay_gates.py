"""Gates: what is written, what is compared, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from semcache.errors import UsageError
from semcache.replay.dataset import Dataset, Row
from semcache.replay.gates import Gate, check
from semcache.replay.options import ReplayOptions
from semcache.replay.replay import check_gates

SUMMARY = {
    "schema": "x", "settings": {"seed": 1}, "requests": 10, "errors": 1, "error_share": 0.1,
    "answer_hits": 6, "answer_share": 0.6,
    "overall": {"ttft_ms": {"p99": 250.0}},
    "outcomes": {"semantic": {"share": 0.2, "ttft_ms": {"p99": None}}},
    "wrong_hits": {"rate": 0.02, "ci95": [0.0, 0.1]},
}  # fmt: skip


@pytest.mark.parametrize(("text", "passed"), [
    ("wrong_hits.rate<=0.02", True), ("wrong_hits.rate < 2%", False), ("answer_hits>=0.5", True),
    ("answer_hits>=61%", False), ("answer_hits>=6", True), ("answer_hits>=7", False), ("errors<=10%", True),
    ("errors==1", True), ("ttft_p99<=250ms", True), ("ttft_p99<=0.25s", True), ("ttft_p99<250", False),
    ("outcomes.semantic.share>0.1", True), ("semantic.share>0.1", True), ("overall.ttft_ms.p99>=.2s", True),
    ("semantic.ttft_p99<=1s", False),
])  # fmt: skip
def test_gates(text, passed):
    assert check(Gate.parse(text), SUMMARY).passed is passed


@pytest.mark.parametrize(
    "text", ["", "ttft_p99", "ttft_p99<=", "ttft_p99=<5", "ttft_p99<=5min", "answer_hits>=5ms", "5<=6"]
)
def test_expressions_that_make_no_sense(text):
    with pytest.raises(UsageError, match="--gate"):
        Gate.parse(text)


@pytest.mark.parametrize("name", ["hit_rate", "settings.seed", "wrong_hits.ci95", "schema"])
def test_unknown_name_lists_what_there_is(name):
    with pytest.raises(UsageError, match=r"available: .*wrong_hits\.rate"):
        check(Gate.parse(f"{name}<=1"), SUMMARY)


def test_names_are_checked_before_anything_is_sent():
    dataset = Dataset(Path("x.json"), "0", [Row("q", None, None, None, None, 1)])
    good = ("miss.ttft_p50<=1s", "baseline.total_p95<=1s", "cost.total<=1", "memory.peak_mb<=900", "speedup.overall>=1")
    options = ReplayOptions("x.json", baseline=True, cost_per_hour=1.0, gates=tuple(map(Gate.parse, good)))
    check_gates(options, dataset)
    with pytest.raises(UsageError, match="there is no 'hit_rate'"):
        check_gates(ReplayOptions("x.json", gates=(Gate.parse("hit_rate>=0.5"),)), dataset)
