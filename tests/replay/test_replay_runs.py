"""Whole replays against a small daemon over a real Unix socket."""

from __future__ import annotations

import asyncio
import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from semcache.errors import DaemonUnreachableError, EngineError, NotFoundError, UsageError
from semcache.replay.dataset import Dataset, Row
from semcache.replay.gates import Gate


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "run" / "requests.jsonl").read_text().splitlines()]


async def test_every_row_is_asked_once_and_saved(run_replay, daemon, tmp_path):
    result = await run_replay()
    (summary,) = result.summaries
    assert not result.interrupted
    assert result.failure is None
    assert (summary["requests"], summary["errors"], summary["outcomes"]["miss"]["n"]) == (6, 0, 6)
    assert summary["outcomes"]["miss"]["correct"] == 1.0
    assert summary["outcomes"]["exact"]["ttft_ms"] == {"p50": None, "p95": None, "p99": None}
    assert [body["messages"][-1]["content"] for body in daemon.bodies] == [f"question {n}" for n in range(1, 7)]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert [line["row"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with (tmp_path / "run" / "requests.csv").open(newline="") as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == ["miss"] * 6
    saved = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert saved["dataset"]["sha256"] == "0" * 64
    assert saved["settings"]["judge"] == "contains"


async def test_cold_namespace_is_isolated_and_removed(run_replay, daemon):
    result = await run_replay(repeat=2)
    (namespace,) = daemon.cleared
    assert namespace.startswith("rp-")
    assert {body["cache_namespace"] for body in daemon.bodies} == {namespace}
    assert result.summaries[0]["outcomes"]["exact"]["n"] == 6
    assert result.summaries[0]["settings"]["namespace"] == namespace


async def test_warm_uses_no_namespace_and_removes_nothing(run_replay, daemon):
    await run_replay(cold=False)
    assert daemon.cleared == []
    assert all("cache_namespace" not in body for body in daemon.bodies)


async def test_users_are_dealt_in_turn_and_keep_their_rows(run_replay, daemon):
    await run_replay(users=4, repeat=2)
    users = [body["user"] for body in daemon.bodies]
    assert users[:6] == ["u1", "u2", "u3", "u4", "u1", "u2"]
    assert users[6:] == users[:6]


async def test_combinations_run_one_after_another_each_in_its_own_namespace(run_replay, daemon):
    result = await run_replay(strategies=("per_user", "global_user"), concurrency=(1, 3))
    told = [(summary["settings"]["strategy"], summary["settings"]["concurrency"]) for summary in result.summaries]
    assert told == [("per_user", 1), ("global_user", 1), ("per_user", 3), ("global_user", 3)]
    assert len(set(daemon.cleared)) == 4
    assert all(summary["requests"] == 6 for summary in result.summaries)


async def test_concurrency_is_bounded_and_used(run_replay, daemon):
    daemon.delay_s = 0.02
    await run_replay(concurrency=(3,), repeat=2)
    assert daemon.max_running == 3


async def test_rate_spreads_the_requests(run_replay):
    result = await run_replay(rate=100.0)
    assert result.summaries[0]["duration_s"] >= 0.05
    assert result.summaries[0]["late_ms"]["p50"] is not None


async def test_baseline_asks_each_prompt_once_with_the_cache_off_and_judges_semantic_answers(run_replay, daemon):
    daemon.donors = {"question 2": "something else", "question 3": "answer to question 3"}
    result = await run_replay(baseline=True, repeat=2)
    (summary,) = result.summaries
    off = [body for body in daemon.bodies if body.get("cache") == "off"]
    assert len(off) == 6
    assert summary["baseline"]["n"] == 6
    assert summary["requests"] == 12
    wrong = summary["wrong_hits"]
    assert (wrong["checked"], wrong["wrong"], wrong["by"]) == (2, 1, {"baseline": 2, "expected": 0})
    assert summary["outcomes"]["semantic"]["correct"] == 0.5
    assert "baseline" in summary["settings"]["speedup"]["reference"]


async def test_without_baseline_a_semantic_answer_is_judged_by_the_expected_one(run_replay, daemon):
    daemon.donors = {"question 2": "something else"}
    result = await run_replay()
    assert result.summaries[0]["wrong_hits"]["by"] == {"baseline": 0, "expected": 1}
    assert result.summaries[0]["wrong_hits"]["wrong"] == 1


async def test_with_nothing_to_compare_a_semantic_answer_is_unchecked(run_replay, daemon, tmp_path):
    daemon.donors = {"open": "something"}
    dataset = Dataset(tmp_path / "open.json", "1" * 64, [Row("open", None, None, None, None, 1)])
    result = await run_replay(dataset)
    wrong = result.summaries[0]["wrong_hits"]
    assert (wrong["checked"], wrong["wrong"], wrong["rate"], wrong["ci95"]) == (0, None, None, None)
    assert result.summaries[0]["overall"]["correct"] is None


async def test_context_becomes_the_system_message(run_replay, daemon, tmp_path):
    dataset = Dataset(tmp_path / "c.json", "1" * 64, [Row("q", None, None, "be brief", None, 1)])
    await run_replay(dataset, max_tokens=5, model="mini")
    body = daemon.bodies[0]
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
    assert (body["max_tokens"], body["model"], body["temperature"]) == (5, "mini", 0)


async def test_busy_is_retried_and_other_errors_are_recorded(run_replay, daemon, tmp_path):
    daemon.failures = {"question 2": ["queue_full", "unavailable"], "question 4": ["engine_error"]}
    result = await run_replay()
    (summary,) = result.summaries
    assert (summary["requests"], summary["errors"], summary["retries"]) == (6, 1, 2)
    by_row = {line["row"]: line for line in lines(tmp_path)}
    assert by_row[2]["attempts"] == 3
    assert by_row[4]["error"] == {"code": "engine_error", "message": "engine_error!"}
    assert sum(group["n"] for group in summary["outcomes"].values()) == 5
    assert result.failure is None


async def test_busy_for_ever_is_an_error_of_that_request(run_replay, daemon):
    daemon.failures = {"question 1": ["queue_full"] * 50}
    result = await run_replay()
    assert result.summaries[0]["errors"] == 1
    assert len(daemon.failures["question 1"]) == 50 - 8


async def test_when_nothing_is_answered_the_run_fails_with_that_error(run_replay, daemon):
    daemon.failures = {f"question {n}": ["engine_error"] for n in range(1, 7)}
    result = await run_replay()
    assert isinstance(result.failure, EngineError)
    assert daemon.cleared


async def test_a_daemon_that_dies_stops_the_run_and_keeps_what_is_there(run_replay, daemon, tmp_path):
    daemon.die_after = 3
    result = await run_replay()
    assert isinstance(result.failure, DaemonUnreachableError)
    assert result.summaries[0]["requests"] == 3
    assert result.summaries[0]["settings"]["complete"] is False
    assert len(lines(tmp_path)) == 3


async def test_cancelled_it_saves_removes_the_namespace_and_returns(run_replay, daemon, tmp_path):
    daemon.delay_s = 0.05
    task = asyncio.create_task(run_replay(concurrency=(2,)))
    while len(daemon.bodies) < 4:
        await asyncio.sleep(0.005)
    task.cancel()
    result = await task
    assert result.interrupted
    assert len(daemon.cleared) == 1
    assert result.summaries[0]["requests"] == len(lines(tmp_path)) == 2
    assert (tmp_path / "run" / "summary.json").exists()


async def test_resume_asks_only_what_is_missing(run_replay, daemon, tmp_path):
    daemon.failures = {"question 5": ["engine_error"]}
    daemon.die_after = None
    await run_replay()
    # As after a crash: the last line is cut off and the summary is missing.
    log = tmp_path / "run" / "requests.jsonl"
    log.write_text(log.read_text()[:-30])
    (tmp_path / "run" / "summary.json").unlink()
    daemon.bodies.clear()
    result = await run_replay(resume="run")
    assert [body["messages"][-1]["content"] for body in daemon.bodies] == ["question 5", "question 6"]
    (summary,) = result.summaries
    assert (summary["requests"], summary["errors"], summary["settings"]["resumed"]) == (6, 0, True)
    assert summary["settings"]["complete"]
    assert len(daemon.cleared) == 2


@pytest.mark.parametrize(("changed", "named"), [({"judge": "f1"}, "judge"), ({"users": 2}, "users")])
async def test_resume_refuses_other_settings(run_replay, changed, named):
    await run_replay()
    with pytest.raises(UsageError, match=named):
        await run_replay(resume="run", **changed)


async def test_resume_refuses_other_rows_and_needs_a_run(run_replay, trivia, tmp_path):
    with pytest.raises(NotFoundError):
        await run_replay(resume="run")
    await run_replay()
    with pytest.raises(UsageError, match="other rows"):
        await run_replay(Dataset(trivia.path, "2" * 64, trivia.rows), resume="run")


async def test_a_folder_that_holds_a_run_is_not_overwritten(run_replay):
    await run_replay()
    with pytest.raises(UsageError, match="already holds a run"):
        await run_replay()


async def test_gates_are_judged_in_the_summary(run_replay):
    gates = tuple(map(Gate.parse, ("answer_hits>=50%", "requests==6", "wrong_hits.rate<=0.02")))
    result = await run_replay(gates=gates)
    verdicts = {gate["gate"]: gate["passed"] for gate in result.summaries[0]["gates"]}
    # Nothing semantic was served, so the rate of wrong hits is unknown, and unknown does not pass.
    assert verdicts == {"answer_hits>=50%": False, "requests==6": True, "wrong_hits.rate<=0.02": False}


async def test_cost_follows_the_duration(run_replay):
    result = await run_replay(cost_per_hour=36.0)
    (summary,) = result.summaries
    assert summary["cost"]["total"] == pytest.approx(summary["duration_s"] * 0.01)
