"""The benchmark as one command, small: made-up vectors, the real arms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import semantic
from benchmarks.semantic_trace.arms import Budget
from benchmarks.semantic_trace.campaign import verified
from semcache.daemon.cache.policy import Policy, ThresholdPolicy
from tests.benchmarks.semantic_trace import made_up

ROW = {
    "arm": str, "budget": dict, "seed": int, "requests": int, "served": int, "wrong": int, "wrong_per_request": float,
    "wrong_per_request_ci95": tuple, "wrong_per_hit": (float, type(None)), "wrong_per_hit_ci95": (tuple, type(None)),
    "draft_offered": int, "explored": int, "decision_ms_p50": float, "decision_ms_p99": float,
}  # fmt: skip


def threshold(budget: Budget, seed: int) -> Policy:
    """A fixed policy, so that what is counted is known; looser where more errors are allowed."""
    assert budget.max_error is not None
    return ThresholdPolicy(0.99 - 2 * budget.max_error)


def measured(*arguments: str, policy: Any = threshold) -> dict[str, Any]:
    known = made_up.questions(120, 6)
    options = semantic._parser().parse_args(["--questions", "made-up.jsonl", *arguments])
    return semantic.measure(known, made_up.pairs(known, 40), options, made_up.embed, policy)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return measured("--limit", "250", "--seeds", "2", "--budgets", "0.01,0.05", "--pairs", "pairs.jsonl")


def test_every_row_has_the_fixed_fields(found: dict[str, Any]) -> None:
    assert found["schema"] == "semcache.bench.semantic/1"
    assert found["machine"]["cores"] > 0
    for row in found["arms"]:
        for name, kind in ROW.items():
            assert isinstance(row[name], kind), (row["arm"], name)
        assert set(row["budget"]) == {"max_error", "max_hit_error"}
        assert 0 <= row["wrong"] <= row["served"] <= row["requests"]
    json.dumps(found)


def test_every_arm_runs_at_every_budget_and_seed(found: dict[str, Any]) -> None:
    count = {
        (row["arm"], row["budget"]["max_error"], row["budget"]["max_hit_error"], row["seed"]) for row in found["arms"]
    }
    assert len(count) == len(found["arms"]) == 2 * (1 + 20 + 2 + 2 + 4)
    assert {name.split(":")[0] for name, *_ in count} == {"none", "static", "vcache", "vcache_grid", "semcache"}


def test_semcache_has_each_budget_with_and_without_a_bound_on_hits(found: dict[str, Any]) -> None:
    budgets = {
        (r["budget"]["max_error"], r["budget"]["max_hit_error"]) for r in found["arms"] if r["arm"] == "semcache"
    }
    assert budgets == {(0.01, 0.02), (0.01, 0.5), (0.05, 0.02), (0.05, 0.5)}


def test_a_lower_threshold_serves_more_and_the_first_request_never_hits(found: dict[str, Any]) -> None:
    served = [row["served"] for row in found["arms"] if row["arm"].startswith("static:") and row["seed"] == 0]
    assert served == sorted(served, reverse=True)
    assert served[0] > served[-1]
    assert all(row["served"] == 0 for row in found["arms"] if row["arm"] == "none")


def test_near_misses_are_counted_at_their_worst(found: dict[str, Any]) -> None:
    counted = found["near_miss"]
    assert {"pairs", "served_wrongly", "paraphrases", "served", "draft_offered"} <= set(counted)
    assert counted["pairs"] > 0
    assert counted["served"] + counted["draft_offered"] <= counted["paraphrases"]
    assert counted["served_wrongly"] == max(state["served_wrongly"] for state in counted["states"][:3])


def test_the_same_command_finds_the_same(found: dict[str, Any]) -> None:
    again = measured("--limit", "250", "--seeds", "2", "--budgets", "0.01,0.05", "--pairs", "pairs.jsonl")

    def figures(report: dict[str, Any]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if "_ms_" not in key} for row in report["arms"]]

    assert figures(again) == figures(found)
    assert again["near_miss"] == found["near_miss"]
    assert again["comparison"] == found["comparison"]


def test_files_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = tmp_path / "wrong.jsonl"
    measured(
        "--limit", "200", "--seeds", "1", "--budgets", "0.2", "--plots", str(tmp_path), "--zipf", "--drift",
        "--pairs", "p", "--noise-sample", "5", str(sample),
    )  # fmt: skip
    rows = [json.loads(line) for line in sample.read_text().splitlines()]
    assert 0 < len(rows) <= 5
    assert all(row["asked_class"] != row["stored_class"] and row["arms"] for row in rows)
    assert {path.name for path in tmp_path.glob("*.png")} == {"hits_error.png", "error_over_time.png"}
    printed = capsys.readouterr().out
    for title in ("Fixed cosine", "Arms", "Near misses", "Drift", "Repeats"):
        assert title in printed


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert semantic.main(["--questions", str(tmp_path / "absent.jsonl")]) == 2
    assert "absent.jsonl: cannot be read" in capsys.readouterr().err
    for wrong in (
        ["--drift"],
        ["--noise-sample", "x", "f"],
        ["--arms", "gptcache"],
        ["--budgets", "2"],
        ["--limit", "0"],
    ):
        with pytest.raises(SystemExit):
            semantic.main(["--questions", "q.jsonl", *wrong])


def test_the_daemons_own_policy_runs() -> None:
    found = measured("--limit", "120", "--seeds", "1", "--budgets", "0.05", "--arms", "semcache", policy=verified(0.02))
    for row in found["arms"]:
        assert row["requests"] == 120
        assert row["served"] + row["draft_offered"] > 0
        assert sum(row["reasons"].values()) == 120
