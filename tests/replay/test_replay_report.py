"""The tables that replay prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semcache.replay import report
from semcache.replay.dataset import Dataset, Row
from semcache.replay.gates import Gate
from semcache.replay.summary import Measured, judged, summarise

DATASET = Dataset(Path("dir/trivia.json"), "0" * 64, [Row("q", None, None, None, None, 1)])


def summary(records: list[Any], gates: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    given = {"strategy": None, "concurrency": 1, "judge": "contains", "baseline": False, "planned": len(records)}
    return judged(summarise(Measured(DATASET, given | settings, records)), map(Gate.parse, gates))


def test_outcome_table(make_record):
    records = [
        make_record("miss", index=0, total_ms=200, ttft_ms=151.4, correct=True),
        make_record("semantic", index=1, total_ms=20, ttft_ms=9.04, correct=False, wrong=True, reference="expected"),
    ]
    text = report.render([summary(records, ("errors==0", "wrong_hits.rate<=2%"))], Path("runs/one"))
    assert text.isascii()
    assert text.splitlines()[2:7] == [
        "| outcome  |   n |   share | TTFT p50 | TTFT p95 | TTFT p99 | total p50 | speed-up | correct |",
        "|----------|----:|--------:|---------:|---------:|---------:|----------:|---------:|--------:|",
        "| semantic |   1 |  50.0 % |      9.0 |      9.0 |      9.0 |      20.0 |    10.0x |   0.0 % |",
        "| miss     |   1 |  50.0 % |      151 |      151 |      151 |       200 |     1.0x | 100.0 % |",
        "| all      |   2 | 100.0 % |      9.0 |      151 |      151 |      20.0 |     1.8x |  50.0 % |",
    ]
    assert "answer hits 1 (50.0 %), compute hits 1 (50.0 %)" in text
    assert "prompt tokens reused 0 of 20 (0.0 %)" in text
    assert "wrong hits 1 of 1 checked = 100.0 % (95 % CI 20.7-100.0 %), judged by the expected answers" in text
    assert "gate passed: errors==0 (errors = 0)" in text
    assert "gate FAILED: wrong_hits.rate<=2% (wrong_hits.rate = 1)" in text
    assert text.endswith("saved in runs/one\n")


def test_unchecked_semantic_answers_are_said_to_be_unknown(make_record):
    text = report.render([summary([make_record("semantic")])], Path("r"))
    assert "wrong hits: unknown, none of 1 semantic answers could be checked" in text


def test_f1_shows_its_threshold(make_record):
    assert "judge f1 (at least 0.8)" in report.render([summary([make_record()], judge="f1")], Path("r"))


def test_several_combinations_stand_side_by_side(make_record):
    both = [summary([make_record()], strategy=name) for name in ("per_user", "global_user")]
    lines = report.render(both, Path("r")).splitlines()
    assert any(line.startswith("| run ") for line in lines)
    assert any(line.startswith("| global_user x1 |") for line in lines)


def test_compare_shows_the_change(make_record):
    before, now = summary([make_record(total_ms=100)]), summary([make_record(total_ms=50)])
    text = report.compared([before], [now])
    row = next(line for line in text.splitlines() if line.startswith("| total p50"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["total p50", "100", "50.0", "-50.0 %"]
    other = {**before, "dataset": {**before["dataset"], "sha256": "1"}}
    assert "read other rows" in report.compared([other], [now])
    assert "has no default x1" in report.compared([], [now])


def test_cells_cannot_break_the_table():
    assert report.table(["a"], [["x|y"]])[2] == "| x\\|y |"


@pytest.mark.parametrize(("control", "distrusted"), [(1.0, False), (1.4, False), (11.8, True), (0.04, True)])
def test_a_baseline_under_other_conditions_is_called_out(make_record, control, distrusted):
    found = summary([make_record()], baseline=True)
    found["speedup"]["control"] = control
    assert ("DO NOT TRUST THE SPEED-UPS" in report.render([found], Path("r"))) is distrusted
