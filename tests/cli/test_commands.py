"""stats, ps, cache, model, logs, doctor: text for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from semcache.cli import machine, render
from semcache.cli.stats import semantic_line
from semcache.wire.status import SemanticStatus
from tests.cli.conftest import Semcache
from tests.cli.fake_daemon import ENTRY, MODEL, SEMANTIC, USER_STATS, FakeDaemon, error


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (["stats"], "/v1/semcache/stats"),
        (["ps"], "/v1/semcache/status"),
        (["daemon", "status"], "/v1/semcache/status"),
        (["cache", "ls"], "/v1/semcache/entries"),
        (["cache", "show", "e_1"], "/v1/semcache/entries/e_1"),
        (["stats", "--audits"], "/v1/semcache/audit"),
        (["cache", "explain", "hi"], "/v1/semcache/explain"),
        (["cache", "explain", "req_1"], "/v1/semcache/explain/req_1"),
        (["cache", "mark-wrong", "req_1"], "/v1/semcache/feedback"),
        (["cache", "tune"], "/v1/semcache/tune"),
        (["cache", "check"], "/v1/semcache/check"),
        (["cache", "clear", "--yes"], "/v1/semcache/clear"),
        (["model", "ls"], "/v1/semcache/models"),
        (["model", "load"], "/v1/semcache/models/load"),
        (["model", "unload"], "/v1/semcache/models/unload"),
    ],
)
def test_json_is_what_the_daemon_said(semcache: Semcache, daemon: FakeDaemon, command: list[str], path: str) -> None:
    ran = semcache(*command, "--json")
    assert ran.code == 0
    assert json.loads(ran.out) == json.loads(json.dumps(daemon.replies[path]))
    assert ran.err == ""
    text = semcache(*command)
    assert text.code == 0
    assert "\x1b" not in text.out + text.err


def test_model_info(semcache: Semcache, daemon: FakeDaemon) -> None:
    assert json.loads(semcache("model", "info", "--json").out) == MODEL
    assert "LlamaForCausalLM" in semcache("model", "info").out


def test_stats_table(semcache: Semcache, daemon: FakeDaemon) -> None:
    lines = semcache("stats").out.splitlines()
    assert len(lines) == 2
    assert "50.0 %" in lines[1]
    assert "12 345" in lines[1]
    assert "2.0 MB" in lines[1], "what RAM holds lies on disk too"
    both = daemon.replies["/v1/semcache/stats"]["users"] * 2
    daemon.replies["/v1/semcache/stats"] = {**daemon.replies["/v1/semcache/stats"], "users": both}
    assert len(semcache("stats").out.splitlines()) == 4


def test_stats_tell_the_wrong_hits_with_their_interval(semcache: Semcache, daemon: FakeDaemon) -> None:
    assert semcache("stats").out.splitlines()[1].endswith("not audited yet")
    audited = {**USER_STATS, "wrong_hits": {"audits": 150, "wrong": 2, "rate": 0.0133, "ci95": (0.0037, 0.0473)}}
    daemon.replies["/v1/semcache/stats"] = {"schema": "semcache.stats/1", "total": audited, "users": [audited]}
    assert semcache("stats").out.splitlines()[1].endswith("2/150 audited (0.37–4.7 %)")


@pytest.mark.parametrize("command", [["ps"], ["daemon", "status"]])
def test_status(semcache: Semcache, daemon: FakeDaemon, command: list[str]) -> None:
    out = semcache(*command).out
    assert "1 running" in out
    assert "unloads in 9 min 41 s" in out
    assert "verified: at most 1 % wrong per request, 2 % per hit · 0/38 audited (0–9.2 %) · 3 audits due" in out
    assert "SUSPENDED" not in out
    status = daemon.replies["/v1/semcache/status"]
    daemon.replies["/v1/semcache/status"] = {**status, "semantic": {**SEMANTIC, "suspended": ["os:1000/ann", "global"]}}
    out = semcache(*command).out
    assert "SUSPENDED  semantic off for os:1000/ann, global: audits found too many wrong answers" in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": "threshold"}, "threshold ≥ 0.95 · 0/38 audited (0–9.2 %) · 3 audits due · embedder ready"),
        ({"policy": "off", "due_audits": 0}, "off · embedder ready"),
        ({"policy": "off", "due_audits": 0, "drafts": False, "state": "failed", "reason": "no files"},
         "off · no drafts · embedder failed (no files)"),
    ],
)  # fmt: skip
def test_the_semantic_line(changes: dict[str, Any], said: str) -> None:
    assert semantic_line(cast("SemanticStatus", {**SEMANTIC, **changes})) == said


def test_cache_ls_sends_its_filters_and_shows_no_control_characters(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("cache", "ls", "--user", "alice", "--sort", "hits", "--limit", "7", "--match", "cap")
    assert daemon.seen[0][2] == {"user": "alice", "sort": "hits", "limit": "7", "match": "cap"}
    assert ran.out.splitlines()[1].endswith("What is the capital? [31m")


def test_cache_rm(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/semcache/entries/e_1"] = {"removed": 1}
    assert semcache("cache", "rm", "e_1").code == 0
    ran = semcache("cache", "rm", "e_1", "e_2")
    assert ran.code == 1
    assert "'e_2'" in ran.err
    assert json.loads(semcache("cache", "rm", "e_1", "e_2", "--json").out) == {"removed": 1, "not_found": ["e_2"]}


def test_cache_pin_and_unpin(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("cache", "pin", "e_1", "e_1")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.strip() == "pinned 1 of 1: 52.3 kB with 2 blocks of KV"
    assert daemon.seen[-1][:2] == ("PUT", "/v1/semcache/entries/e_1/pin")
    said = {"pinned": 1, "bytes": 52_345, "not_found": ["e_2"]}
    ran = semcache("cache", "pin", "e_1", "e_2", "--json")
    assert (ran.code, json.loads(ran.out)) == (1, said)
    ran = semcache("cache", "unpin", "e_2", "e_1")
    assert ran.code == 1
    assert "unpinned 1 of 2" in ran.err
    assert "'e_2'" in ran.err
    assert daemon.seen[-1][:2] == ("DELETE", "/v1/semcache/entries/e_1/pin")
    assert json.loads(semcache("cache", "unpin", "e_1", "--json").out) == {"unpinned": 1, "not_found": []}
    daemon.fails("/v1/semcache/entries/e_1/pin", 409, "pin_limit", "cannot pin e_1: too much")
    ran = semcache("cache", "pin", "e_1")
    assert (ran.code, ran.err) == (1, "semcache: cannot pin e_1: too much\n")
    assert semcache("cache", "pin").code == 2


def test_the_pin_is_shown(semcache: Semcache, daemon: FakeDaemon) -> None:
    assert "pinned" not in semcache("cache", "ls").out
    assert "no: " not in semcache("cache", "show", "e_1").out
    pinned = {**ENTRY, "pinned": True, "expires": "2026-12-01T00:00:00+00:00", "blocks": None, "kv_bytes": None}
    daemon.replies["/v1/semcache/entries"] = {"entries": [pinned]}
    daemon.replies["/v1/semcache/entries/e_1"] = pinned
    assert "pinned" in semcache("cache", "ls").out.splitlines()[1]
    out = semcache("cache", "show", "e_1").out
    assert "yes: no budget takes it" in out
    assert "but not while it is pinned" in out
    assert "not known" in out


def test_cache_clear_wants_a_yes(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("cache", "clear")
    assert ran.code == 2
    assert "--yes" in ran.err
    assert daemon.seen == []
    assert semcache("cache", "clear", "--yes", "--user", "bob").code == 0
    assert daemon.seen[-1][2] == {"user": "bob"}
    assert "1 pinned stay" in semcache("cache", "clear", "--yes").err
    assert semcache("cache", "clear", "--yes", "--all").code == 0
    assert daemon.seen[-1][2] == {"all": True}


def test_cache_check_is_exit_1_when_something_is_wrong(semcache: Semcache, daemon: FakeDaemon) -> None:
    report = daemon.replies["/v1/semcache/check"]
    problem = {"kind": "missing_file", "path": "kv/a", "detail": "row without file"}
    daemon.replies["/v1/semcache/check"] = {**report, "ok": False, "problems": [problem]}
    ran = semcache("cache", "check")
    assert ran.code == 1
    assert "missing_file  kv/a  row without file" in ran.out
    semcache("cache", "check", "--fix")
    assert daemon.seen[-1][2] == {"fix": True}


def test_show_of_an_unknown_entry(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/semcache/entries/e_9"] = (404, error("not_found", "no entry e_9"))
    assert semcache("cache", "show", "e_9").code == 1


def test_quiet_silences_notes_only(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/semcache/entries"] = {"entries": []}
    assert "nothing stored yet" in semcache("cache", "ls").err
    assert semcache("cache", "ls", "--quiet").err == ""


def test_logs(semcache: Semcache, home: Path) -> None:
    assert semcache("logs").code == 1
    log = home / "state" / "log" / "daemon.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {number}\n" for number in range(20_000)))
    assert semcache("logs", "-n", "2").out == "line 19998\nline 19999\n"
    assert semcache("logs", "-n", "0").out == ""
    assert len(semcache("logs", "-n", "15000").out.splitlines()) == 15_000
    assert semcache("logs", "-n", "1", "--json").out == '{"line": "line 19999"}\n'
    assert semcache("logs", "--url", "http://x").code == 2


def test_logs_follow(process: Callable[..., object], home: Path) -> None:
    log = home / "state" / "log" / "daemon.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\n")
    ran = process("logs", "--follow")
    assert ran.stdout.readline() == "one\n"
    with log.open("a") as more:
        more.write("two\n")
    assert ran.stdout.readline() == "two\n"
    ran.terminate()
    ran.communicate(timeout=20)


def test_doctor(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("doctor", "--json")
    checks = {check["id"]: check for check in json.loads(ran.out)["checks"]}
    wanted = {"python", "socket", "config", "data-folder", "runtime-folder", "filesystem", "disk", "memory", "torch"}
    assert wanted | {"model", "embedder", "daemon", "leftovers"} <= set(checks)
    assert all(check["fix"] for check in checks.values() if check["status"] != "ok")
    assert ran.code == (1 if any(check["status"] == "fail" for check in checks.values()) else 0)
    assert checks["daemon"]["status"] == "ok"
    assert checks["torch"]["status"] != "fail"


def test_the_daemon_refuses_the_same_filesystems() -> None:
    datadir = pytest.importorskip("semcache.store.datadir")
    assert machine.NETWORK_FILESYSTEMS == datadir.NETWORK_FILESYSTEMS
    assert machine.is_network("nfs4")
    assert not machine.is_network("ext4")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB"), (None, "–")],
)
def test_sizes(value: float | None, text: str) -> None:
    assert render.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.12 s"), (59, "59 s"), (131, "2 min 11 s"), (7260, "2 h 1 min"), (90_000, "1 d 1 h")]
)
def test_durations(value: float, text: str) -> None:
    assert render.seconds(value) == text


def test_wide_characters_take_two_cells() -> None:
    assert render.cut("日本語", 5) == "日本…"
    assert render.cut("abc", 3) == "abc"
