"""`semcache replay`: options to a run, stdout for the data, exit codes after everything is saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Semcache
from tests.cli.fake_daemon import FakeDaemon, error

Process = Callable[..., "subprocess.Popen[str]"]

ROWS = [{"question": f"capital city of australia {n}?", "answer": "Canberra"} for n in range(4)]


@pytest.fixture
def file(home: Path) -> str:
    (home / "capitals.json").write_text(json.dumps(ROWS))
    return "capitals.json"


def chats(daemon: FakeDaemon) -> list[dict[str, object]]:
    return [body for _method, path, body in daemon.seen if path == "/v1/chat/completions"]


def test_table_on_stdout_and_a_saved_run(semcache: Semcache, daemon: FakeDaemon, file: str, home: Path) -> None:
    ran = semcache("replay", file)
    assert ran.code == 0
    assert "| semantic |   4 | 100.0 % |" in ran.out
    assert "wrong hits 0 of 4 checked = 0.0 % (95 % CI 0.0-49.0 %), judged by the expected answers" in ran.out
    (run,) = (home / "state" / "runs").iterdir()
    assert run.name.endswith("_capitals")
    assert {path.name for path in run.iterdir()} == {"requests.jsonl", "requests.csv", "summary.json", "run.toml"}
    cleared = [body for _method, path, body in daemon.seen if path == "/v1/semcache/clear"]
    assert cleared == [{"namespace": chats(daemon)[0]["cache_namespace"], "all": True}]


def test_options_reach_the_daemon(semcache: Semcache, daemon: FakeDaemon, file: str) -> None:
    load = ["--users", "2", "--limit", "2", "--repeat", "2", "--concurrency", "1", "--max-tokens", "7"]
    ran = semcache("replay", file, *load, "--warm", "--strategy", "global_user", "--model", "mini", "--out", "here")
    assert ran.code == 0
    sent = chats(daemon)
    assert [body["user"] for body in sent] == ["u1", "u2", "u1", "u2"]
    assert {body["cache_strategy"] for body in sent} == {"global_user"}
    assert (sent[0]["max_tokens"], sent[0]["model"]) == (7, "mini")
    assert "cache_namespace" not in sent[0]
    assert "saved in here" in ran.out


def test_json_is_the_summary_alone(semcache: Semcache, daemon: FakeDaemon, file: str) -> None:
    ran = semcache("replay", file, "--json", "--out", "one")
    summary = json.loads(ran.out)
    assert summary["schema"] == "semcache.replay/1"
    assert summary == json.loads(Path("one/summary.json").read_text())
    ran = semcache("replay", file, "--json", "--strategy", "per_user", "--strategy", "no_cache")
    assert [entry["settings"]["strategy"] for entry in json.loads(ran.out)] == ["per_user", "no_cache"]


def test_failed_gate_is_exit_6_after_saving(semcache: Semcache, daemon: FakeDaemon, file: str) -> None:
    ran = semcache("replay", file, "--gate", "errors==0", "--gate", "answer_hits<50%", "--out", "run")
    assert ran.code == 6
    assert "gate passed: errors==0" in ran.out
    assert "gate FAILED: answer_hits<50% (answer_share = 1)" in ran.out
    assert "answer_hits<50%" in ran.err
    assert Path("run/summary.json").exists()
    ran = semcache("replay", file, "--gate", "answer_hits<50%", "--json")
    assert ran.code == 6
    assert json.loads(ran.out)["gates"][0]["passed"] is False


@pytest.mark.parametrize(("arguments", "said"), [
    (["--gate", "hit_rate>=1"], "available: requests"),
    (["--judge", "model"], "not available yet"),
    (["--concurrency", "1,x"], "expected numbers like"),
    (["--map", "title=x"], "--map"),
    (["--map", "question=q"], "no field 'q' for the question"),
    (["--seed", "3"], "--shuffle"),
    (["--target", "http://localhost:1", "--cold"], "--cold"),
    (["--compare", "nothing"], "no run 'nothing'"),
])  # fmt: skip
def test_refused_before_anything_is_sent(
    semcache: Semcache, daemon: FakeDaemon, file: str, home: Path, arguments: list[str], said: str
) -> None:
    ran = semcache("replay", file, *arguments)
    assert ran.code == (1 if "--compare" in arguments else 2)
    assert said in ran.err
    assert daemon.seen == []
    assert not (home / "state" / "runs").exists()


def test_broken_file_names_file_and_row(semcache: Semcache, home: Path) -> None:
    (home / "bad.json").write_text('[{"question": "a"}, {"title": "b"}]')
    ran = semcache("replay", "bad.json")
    assert ran.code == 2
    assert "bad.json, row 2: no field holds the question" in ran.err
    assert semcache("replay", "nowhere.json").code == 2


def test_no_daemon_is_exit_3_and_leaves_no_run(semcache: Semcache, file: str, home: Path) -> None:
    assert semcache("replay", file).code == 3
    assert not (home / "state" / "runs").exists()


def test_when_every_request_fails_the_exit_code_is_that_error(
    semcache: Semcache, daemon: FakeDaemon, file: str
) -> None:
    daemon.stream = [error("engine_error", "out of tokens")]
    ran = semcache("replay", file)
    assert ran.code == 1
    assert "none of 4 requests was answered; the first one failed with: out of tokens" in ran.err


def test_compare_with_the_last_run(semcache: Semcache, daemon: FakeDaemon, file: str) -> None:
    semcache("replay", file)
    ran = semcache("replay", file, "--compare", "last", "--baseline")
    assert ran.code == 0
    assert "| default x1" in ran.out
    assert "compared with" not in ran.out
    assert sum(body.get("cache") == "off" for body in chats(daemon)) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_saves_and_exits_130(
    daemon: FakeDaemon, process: Process, file: str, home: Path, number: signal.Signals
) -> None:
    daemon.hang_after = 1
    running = process("--no-autostart", "replay", file, "--out", "run")
    deadline = time.monotonic() + 60
    while not chats(daemon) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(running.pid, number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "stopped early: 0 of 4 requests" in out
    assert json.loads((home / "run" / "summary.json").read_text())["settings"]["complete"] is False
    assert [path for _method, path, _body in daemon.seen][-1] == "/v1/semcache/clear"
