"""cache explain, find, mark-wrong, tune and show: what is sent, what is said, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cli.tune import _around
from tests.cli.conftest import Semcache
from tests.cli.fake_daemon import ENTRY, EXPLANATION, FEEDBACK, RECEIPT, SCOPE, FakeDaemon

EXPLAIN = "/v1/semcache/explain"


def request(number: int, outcome: str, user: str = "os:1000", reason: str = "x") -> dict[str, Any]:
    cache = {**RECEIPT["cache"], "outcome": outcome, "reason": reason}
    return {**RECEIPT, "id": f"req_{number}", "user": user, "cache": cache}


# explain


def test_explain_a_prompt(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache(
        *("cache", "explain", "capital?", "--user", "ann", "--strategy", "global_user", "--system", "S"),
        *("--cache", "lossless"),
    )
    asked = {"prompt": "capital?", "user": "ann", "cache_strategy": "global_user", "system": "S", "cache": "lossless"}
    assert daemon.seen == [("POST", EXPLAIN, asked)]
    for words in (
        "would be    ◕ semantic",
        "similar: a differently worded prompt is trusted to mean the same",
        "verified: at most 1 % of requests and 2 % of hits wrong",
        "donor       e_1",
        "64 prompt tokens restored",
        "user scope  learning · 22 served of 310 · 41 labels · 1/22 audited (0.8–22 %) · too little is known yet",
        "0.9620      0.9910  served",
        "the prompts name different numbers",
    ):
        assert words in ran.out
    assert "\x1b" not in ran.out


def test_explain_a_past_request(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.replies[f"{EXPLAIN}/req_1"] = {
        **EXPLANATION, "policy": "threshold", "candidates": [], "evidence": [], "donor": None, "outcome": "miss",
    }  # fmt: skip
    out = semcache("cache", "explain", "req_1").out
    assert daemon.seen == [("GET", f"{EXPLAIN}/req_1", {})]
    assert "was     ○ miss" in out
    assert "threshold: a cosine of 0.95 or more" in out
    assert "none: nothing would be drafted" in out
    assert out.endswith("no stored prompt was considered\n")
    semcache("cache", "explain", "req_1 is what I typed")
    assert daemon.seen[-1] == ("POST", EXPLAIN, {"prompt": "req_1 is what I typed"})


def test_explain_of_an_unknown_request(semcache: Semcache, daemon: FakeDaemon) -> None:
    assert semcache("cache", "explain", "req_9").code == 1
    ran = semcache("cache", "explain", "req_1", "--user", "ann")
    assert ran.code == 2
    assert "asked already" in ran.err


# find


def test_find(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/semcache/entries"] = {"entries": [{**ENTRY, "score": 0.8765}]}
    ran = semcache("cache", "find", "capital cities", "--user", "ann", "--limit", "3")
    assert daemon.seen == [("GET", "/v1/semcache/entries", {"near": "capital cities", "user": "ann", "limit": "3"})]
    header, row = ran.out.splitlines()
    assert header.split() == ["score", "id", "user", "scope", "hits", "prompt", "answer"]
    assert row.split()[:3] == ["0.8765", "e_1", "os:1000/alice"]
    assert row.endswith("Canberra.")
    assert json.loads(semcache("cache", "find", "x", "--json").out)["entries"][0]["score"] == 0.8765
    daemon.replies["/v1/semcache/entries"] = {"entries": []}
    assert "nothing stored that could be compared" in semcache("cache", "find", "x").err


# mark-wrong


def test_mark_the_hit_of_a_request(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("cache", "mark-wrong", "req_7")
    assert daemon.seen == [("POST", "/v1/semcache/feedback", {"id": "req_7", "verdict": "wrong"})]
    assert ran.out == ""
    assert ran.err == "marked wrong: e_1 is never served for that wording again\n"
    daemon.replies["/v1/semcache/feedback"] = {**FEEDBACK, "removed": True, "negative_pair": False}
    assert semcache("cache", "mark-wrong", "e_1").err == "marked wrong: e_1 is removed\n"
    daemon.replies["/v1/semcache/feedback"] = {**FEEDBACK, "negative_pair": False}
    assert semcache("cache", "mark-wrong", "e_1").err == "marked wrong: noted, but e_1 may be served again\n"


@pytest.mark.parametrize(
    ("options", "marked"), [([], "req_2"), (["--user", "ann"], "req_3"), (["--user", "eve"], "req_4")]
)
def test_mark_the_newest_hit(semcache: Semcache, daemon: FakeDaemon, options: list[str], marked: str) -> None:
    daemon.replies["/v1/semcache/requests"] = {
        "requests": [
            request(1, "exact", reason="identical"),
            request(2, "semantic"),
            request(3, "exact", user="os:1000/ann", reason="alias"),
            request(4, "semantic", user="os:1000/eve"),
            request(5, "semantic"),
        ]
    }
    ran = semcache("cache", "mark-wrong", *options)
    assert daemon.seen[-1] == ("POST", "/v1/semcache/feedback", {"id": marked, "verdict": "wrong"})
    assert (
        'asked "capital city of australia?" and was given the answer to "What is the capital of Australia?"' in ran.err
    )


def test_nothing_to_mark(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/semcache/requests"] = {"requests": [request(1, "draft"), request(2, "semantic")]}
    ran = semcache("cache", "mark-wrong", "--user", "annie")
    assert ran.code == 1
    assert "no semantic hit of annie" in ran.err
    assert semcache("cache", "mark-wrong", "req_1", "--user", "ann").code == 2
    ran = semcache("cache", "mark-wrong", "that one")
    assert ran.code == 2
    assert "'that one' is the id of neither" in ran.err
    assert all(path != "/v1/semcache/feedback" for _method, path, _body in daemon.seen)


# tune


def test_tune_around_the_budgets_of_now(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("cache", "tune")
    asked = {"max_error": [0.005, 0.01, 0.02, 0.04], "max_hit_error": [0.01, 0.02, 0.04, 0.08]}
    assert daemon.seen[-1] == ("POST", "/v1/semcache/tune", asked)
    _header, first, second = ran.out.splitlines()
    assert first.endswith("now")
    assert first.split()[:4] == ["1", "%", "2", "%"]
    assert "4.5 % (0.8–22 %)" in first
    assert not second.endswith("now")


def test_tune_given_budgets(semcache: Semcache, daemon: FakeDaemon) -> None:
    semcache("cache", "tune", "--max-error", "0.02", "--max-error", "0.01", "--max-hit-error", "0.5")
    assert daemon.seen == [("POST", "/v1/semcache/tune", {"max_error": [0.01, 0.02], "max_hit_error": [0.5]})]
    semcache("cache", "tune", "--max-error", "0.3")
    assert daemon.seen[-1][2] == {"max_error": [0.3], "max_hit_error": [0.01, 0.02, 0.04, 0.08]}


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "2", "nan"])
def test_a_budget_is_a_share(semcache: Semcache, daemon: FakeDaemon, value: str) -> None:
    ran = semcache("cache", "tune", "--max-hit-error", value)
    assert ran.code == 2
    assert "--max-hit-error" in ran.err
    assert daemon.seen == []


def test_tune_before_anything_was_recorded(semcache: Semcache, daemon: FakeDaemon) -> None:
    empty = {"max_error": 0.01, "max_hit_error": 0.02, "requests": 0, "labelled": 0, "served": 0, "share": 0.0,
             "wrong": 0, "rate": None, "ci95": None, "words": "nothing recorded"}  # fmt: skip
    daemon.replies["/v1/semcache/tune"] = {**daemon.replies["/v1/semcache/tune"], "rows": [empty]}
    ran = semcache("cache", "tune")
    assert "–  now · nothing recorded" in ran.out
    assert "nothing recorded yet" in ran.err


@given(st.floats(1e-6, 1 - 1e-6))
def test_a_grid_is_made_of_shares_and_holds_the_budget_of_now(share: float) -> None:
    around = _around(share)
    assert all(0 < value < 1 for value in around)
    assert around == sorted(around)
    assert any(value == pytest.approx(share, rel=1e-4) for value in around)


# show, stats


def test_show_tells_aliases_and_evidence(semcache: Semcache, daemon: FakeDaemon) -> None:
    out = semcache("cache", "show", "e_1").out
    assert "also for    capital city of australia?" in out
    assert "other wordings wanted this answer 3×, another answer 1×; mean regret 0.042 nats a token" in out
    daemon.replies["/v1/semcache/entries/e_1"] = {**ENTRY, "aliases": [], "evidence": None}
    out = semcache("cache", "show", "e_1").out
    assert "also for" not in out
    assert "none yet" in out


def test_audits_by_scope(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("stats", "--audits")
    lines = ran.out.splitlines()
    assert lines[1].split()[:3] == ["user", "os:1000", "learning"]
    assert "1/22 audited (0.8–22 %)" in lines[1]
    assert lines[1].endswith(SCOPE["words"])
    assert "right  audit  capital city of australia?  What is the capital of Australia?" in lines[-1]
    assert "5 % of hits audited" in ran.err
    assert "3 audits due" in ran.err
