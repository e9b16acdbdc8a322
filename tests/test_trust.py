"""Help from other wordings through a real daemon: drafts change nothing, hits are audited, marked and explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import RunningDaemon
from tests.datasets import rows


def groups(name: str, num: int) -> dict[str, list[str]]:
    """The first groups of a dataset: a trained wording, then held-out ones."""
    trained = {row["group"]: row["question"] for row in rows(name, "train")}
    found: dict[str, list[str]] = {}
    for row in rows(name, "held_out_wording"):
        found.setdefault(row["group"], [trained[row["group"]]]).append(row["question"])
    return dict(list(found.items())[:num])


@pytest.fixture(scope="module")
def drafting(make_module_daemon: Callable[..., RunningDaemon]) -> RunningDaemon:
    return make_module_daemon(semantic__policy="off")


@pytest.fixture(scope="module")
def serving(make_module_daemon: Callable[..., RunningDaemon]) -> RunningDaemon:
    return make_module_daemon(semantic__policy="threshold", semantic__threshold=0.9)


def test_drafts_save_passes_and_change_no_answer(drafting: RunningDaemon) -> None:
    passes = passes_off = 0
    outcomes = []
    for first, *others in groups("support", 12).values():
        drafting.ask(first, user="draft")
        for other in others:
            drafted = drafting.ask(other, user="draft")
            off = drafting.ask(other, user="draft", cache="off")
            assert drafted["answer"] == off["answer"], other
            assert drafted["cache"]["draft_accepted"] <= drafted["usage"]["completion_tokens"]
            outcomes.append(drafted["cache"]["outcome"])
            passes += drafted["cache"]["passes"]
            passes_off += off["cache"]["passes"]
    assert outcomes.count("draft") * 2 >= len(outcomes), outcomes
    assert passes_off >= 2 * passes, "half of the answers, whose donors are not stored here, included"


def test_a_seed_gives_the_same_tokens_with_and_without_a_donor(drafting: RunningDaemon) -> None:
    first, other, *_ = next(iter(groups("support", 1).values()))
    drafting.ask(first, user="seeded")
    for seed in range(5):
        sampling = {"temperature": 0.8, "seed": seed, "user": "seeded"}
        drafted = drafting.ask(other, **sampling)
        assert drafted["answer"] == drafting.ask(other, cache="off", **sampling)["answer"]


def test_an_unseeded_request_still_gets_drafts(drafting: RunningDaemon) -> None:
    drafting.ask("Who wrote Dracula?", user="loose")
    receipt = drafting.ask("Who was Dracula written by?", user="loose", temperature=0.01)
    assert (receipt["cache"]["outcome"], receipt["cache"]["reason"]) == ("draft", "params")
    assert receipt["cache"]["matched_prompt"] == "Who wrote Dracula?"


def test_modes_without_drafts(drafting: RunningDaemon) -> None:
    first, other, *_ = next(iter(groups("support", 1).values()))
    drafting.ask(first, user="modes")
    for mode in ("exact", "prefix", "off"):
        cache = drafting.ask(other, user="modes", cache=mode, headers={"Cache-Control": "no-store"})["cache"]
        assert (cache["outcome"], cache["draft_tokens"]) in (("miss", 0), ("prefix", 0))


def test_no_draft_crosses_users(drafting: RunningDaemon) -> None:
    first, other, *_ = next(iter(groups("support", 1).values()))
    drafting.ask(first, user="owner")
    cache = drafting.ask(other, user="stranger")["cache"]
    assert (cache["draft_tokens"], cache["entry"], cache["matched_prompt"]) == (0, None, None)


def test_an_audited_hit_becomes_an_exact_key(serving: RunningDaemon) -> None:
    with serving.happenings("audit") as finished:
        serving.ask("What is the capital of Australia?", user="audits")
        hit = serving.ask("What is the capital city of Australia?", user="audits")["cache"]
        assert hit["outcome"] == "semantic"
        audit = next(event for event in finished if event["entry"] == hit["entry"])
    assert audit["same"] is True
    row = next(row for row in serving.get("/v1/semcache/stats")["users"] if row["user"].endswith("/audits"))
    estimate = row["wrong_hits"]
    assert (estimate["audits"], estimate["wrong"], estimate["rate"]) == (1, 0, 0.0)
    assert estimate["ci95"][0] == 0.0
    again = serving.ask("What is the capital city of Australia?", user="audits")["cache"]
    assert (again["outcome"], again["reason"], again["entry"]) == ("exact", "alias", hit["entry"])
    assert serving.get(f"/v1/semcache/entries/{hit['entry']}")["aliases"] == ["What is the capital city of Australia?"]
    assert serving.ask("What is the capital city of Australia?", user="other")["cache"]["outcome"] == "miss"


def test_a_hit_marked_wrong_is_not_served_again(serving: RunningDaemon) -> None:
    serving.ask("Who wrote Dracula?", user="marks")
    hit = serving.ask("Who was Dracula written by?", user="marks")
    assert hit["cache"]["outcome"] == "semantic"
    with serving.http() as client:
        result = client.post("/v1/semcache/feedback", json={"id": hit["id"], "verdict": "wrong"}).json()
    assert (result["entry"], result["negative_pair"]) == (hit["cache"]["entry"], True)
    again = serving.ask("Who was Dracula written by?", user="marks")["cache"]
    assert again["outcome"] not in ("semantic", "exact")
    assert again["reason"] == "policy:marked_wrong"
    assert serving.ask("Who wrote Dracula?", user="marks")["cache"]["outcome"] == "exact", "its own words stay right"


def test_a_request_that_wants_nothing_stored_leaves_no_text(make_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = make_daemon(semantic__policy="threshold", semantic__threshold=0.9)
    no_store = {"headers": {"Cache-Control": "no-store"}, "explain": True}
    daemon.ask("What is the capital of Australia?")
    hit = daemon.ask("What is the capital city of Australia?", **no_store)
    computed = daemon.ask("What is the capital of Australia, PLANTED-7391?", **no_store)
    assert hit["cache"]["outcome"] == "semantic"
    assert computed["cache"]["outcome"] not in ("exact", "semantic")
    assert computed["explain"][0]["prompt"] == "What is the capital of Australia?"
    with daemon.http() as client:
        for verdict in ("wrong", "right"):
            reply = client.post("/v1/semcache/feedback", json={"id": hit["id"], "verdict": verdict})
            assert (reply.status_code, "no-store" in reply.text) == (400, True)
    assert [row["prompt"] for row in daemon.get("/v1/semcache/requests")["requests"]][:2] == [
        computed["prompt"], hit["prompt"],
    ]  # fmt: skip
    daemon.stop()
    for text in ("capital of Australia", "capital city of", "PLANTED-7391"):
        found = [path.name for path in daemon.home.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
        assert found == (["semcache.db"] if text == "capital of Australia" else []), text
    daemon.start()
    told = {row["id"]: row for row in daemon.get("/v1/semcache/requests")["requests"]}
    assert {(told[asked["id"]]["prompt"], told[asked["id"]]["answer"]) for asked in (hit, computed)} == {("", "")}
    total = daemon.get("/v1/semcache/stats")["total"]
    assert (total["requests"], total["outcomes"]["semantic"]) == (3, 1)
    daemon.stop()


def test_explanations_leave_no_trace(serving: RunningDaemon) -> None:
    serving.ask("What is the capital of Norway?", user="explains")
    before = serving.get("/v1/semcache/stats")["total"]["requests"]
    with serving.http() as client:
        reply = client.post(
            "/v1/semcache/explain", json={"prompt": "What is the capital of Sweden?", "user": "explains"}
        )
        assert client.post("/v1/semcache/explain", json={"prompt": " "}).status_code == 400
    told = reply.json()
    assert told["candidates"][0]["prompt"] == "What is the capital of Norway?"
    assert told["candidates"][0]["verdict"] == "refused"
    assert told["reason"].startswith("policy:")
    assert serving.get("/v1/semcache/stats")["total"]["requests"] == before
    asked = serving.ask("What is the capital of Sweden?", user="explains", explain=True)
    assert asked["explain"][0]["prompt"] == "What is the capital of Norway?"
    assert serving.get(f"/v1/semcache/explain/{asked['id']}")["candidates"] == asked["explain"]


def test_find_and_metrics(serving: RunningDaemon) -> None:
    serving.ask("What is the capital of Peru?", user="finds")
    found = serving.get("/v1/semcache/entries?near=Peruvian%20capital&user=finds")["entries"]
    assert found[0]["prompt"] == "What is the capital of Peru?"
    assert 0 < found[0]["score"] < 1
    with serving.http() as client:
        text = client.get("/metrics").text
    assert 'semcache_requests_total{outcome="miss"}' in text
    assert "Peru" not in text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("feedback", {"id": "req_0", "verdict": "wrong"}),
        ("feedback", {"id": "e_0", "verdict": "wrong"}),
    ],
)
def test_feedback_on_what_is_not_there(serving: RunningDaemon, path: str, body: dict[str, str]) -> None:
    with serving.http() as client:
        assert client.post(f"/v1/semcache/{path}", json=body).status_code == 404


@pytest.mark.parametrize("bad", [{"max_error": [0]}, {"max_error": [1.0], "max_hit_error": [0.1]}, {}])
def test_budgets_outside_zero_and_one_are_refused(serving: RunningDaemon, bad: dict[str, Any]) -> None:
    with serving.http() as client:
        assert client.post("/v1/semcache/tune", json=bad).status_code == 400
    for key in ("max_error", "max_hit_error"):
        told = serving.cli("config", "set", f"semantic.{key}", "1")
        assert told.returncode == 2
        assert "excluded" in told.stderr
