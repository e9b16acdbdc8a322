"""The main job on real input: the real daemon as a process, its real socket, the built-in model, real files."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.conftest import RunningDaemon
from tests.datasets import rows

QUESTION = "What is the capital of Australia?"
OTHER_WORDING = "What is the capital city of Australia?"


def answers_hits(receipt: Any) -> bool:
    return receipt["cache"]["outcome"] in ("exact", "semantic")


def test_other_wording_is_not_a_miss_and_the_same_words_are_exact(shared_daemon: RunningDaemon) -> None:
    first = shared_daemon.ask(QUESTION, user="tour")
    assert first["cache"]["outcome"] == "miss"
    assert first["answer"] == "Canberra"
    assert first["finish_reason"] == "stop"
    other = shared_daemon.ask(OTHER_WORDING, user="tour")
    assert other["cache"]["outcome"] != "miss"
    assert other["cache"]["matched_prompt"] == QUESTION
    assert other["cache"]["score"] > 0.9
    again = shared_daemon.ask(QUESTION, user="tour")
    assert again["cache"]["outcome"] == "exact"
    assert again["cache"]["reason"] == "identical"
    assert again["answer"] == first["answer"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == again["usage"]["prompt_tokens"]
    near = shared_daemon.ask("What is the capital of Austria?", user="tour")
    assert near["answer"] == "Vienna"
    assert not answers_hits(near)


def test_everything_committed_is_usable_after_a_restart(make_daemon: Callable[..., RunningDaemon]) -> None:
    document = rows("handbook", "train")
    one, two = document[0], next(row for row in document if row["group"] != document[0]["group"])
    daemon = make_daemon()
    asked = daemon.ask(QUESTION)
    about_one = daemon.ask(one["question"], system=one["context"])
    assert about_one["cache"]["outcome"] == "miss"
    daemon.stop()
    daemon.start()
    again = daemon.ask(QUESTION)
    assert (again["cache"]["outcome"], again["answer"]) == ("exact", asked["answer"])
    about_two = daemon.ask(two["question"], system=two["context"])
    assert about_two["cache"]["outcome"] == "prefix"
    assert about_two["cache"]["prefix_tokens"] >= 850
    assert about_two["usage"]["prompt_tokens_details"]["cached_tokens"] == about_two["cache"]["prefix_tokens"]
    cold = daemon.ask(two["question"], system=two["context"], cache="off")
    assert cold["cache"]["outcome"] == "miss"
    assert cold["cache"]["stored"] is False
    assert cold["answer"] == about_two["answer"]
    daemon.stop()


def test_long_contexts_do_not_make_prompts_look_alike(shared_daemon: RunningDaemon) -> None:
    """All handbook and class prompts after one another: none is answered from another question."""
    wrong = []
    for name, at_least in (("handbook", 60), ("class", 150)):
        first_of_group = {row["group"]: row for row in rows(name)}
        assert len(first_of_group) >= at_least
        for row in list(first_of_group.values())[: at_least + 10]:
            receipt = shared_daemon.ask(row["question"], system=row["context"], user="contexts", max_tokens=4)
            if answers_hits(receipt) and receipt["cache"]["matched_prompt"] != row["question"]:
                wrong.append((row["question"], receipt["cache"]["matched_prompt"]))
    assert wrong == []


def test_two_users_never_see_each_other(shared_daemon: RunningDaemon) -> None:
    """More than 200 probes under per_user: the second user's first question is never answered from the first's."""
    questions = [row["question"] for row in rows("trivia", "train")[::29]][:210]
    assert len(questions) >= 200

    def probe(question: str) -> tuple[str, Any]:
        shared_daemon.ask(question, user="ann", max_tokens=8)
        return question, shared_daemon.ask(question, user="bob", max_tokens=8)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        probed = list(threads.map(probe, questions))
    asked_by_bob = {question for question, _ in probed}
    for question, receipt in probed:
        assert receipt["cache"]["outcome"] not in ("exact", "prefix"), question
        assert receipt["cache"]["prefix_tokens"] == 0
        if receipt["cache"]["matched_prompt"] is not None:  # bob's own earlier question
            assert receipt["cache"]["matched_prompt"] in asked_by_bob
    users = {entry["id"]: entry["user"] for entry in shared_daemon.get("/v1/semcache/entries?limit=10000")["entries"]}
    for _, receipt in probed:
        entry = receipt["cache"]["entry"]
        assert entry is None or users[entry].endswith("/bob")


@pytest.mark.parametrize("strategy", ["per_user", "global_user", "global_only", "no_cache"])
def test_strategies_through_generate(shared_daemon: RunningDaemon, strategy: str) -> None:
    def generate(user: str) -> Any:
        # A word of its own for each strategy, for they may share the global scope.
        body = {"inputs": f"{strategy}: who wrote Hamlet?", "parameters": {"max_new_tokens": 8}}
        with shared_daemon.http() as client:
            reply = client.post("/generate", json={**body, "user_id": user, "cache_strategy": strategy})
        assert reply.status_code == 200, reply.text
        return reply.json()

    first = generate(f"{strategy}-a")
    assert (first["cached"], first["similarity"], first["source"]) == (False, None, None)
    own, other = generate(f"{strategy}-a"), generate(f"{strategy}-b")
    sources = {
        "per_user": ("user", None), "global_user": ("user", "global"), "global_only": ("global", "global"),
        "no_cache": (None, None),
    }[strategy]  # fmt: skip
    assert (own["source"], other["source"]) == sources
    assert own["cached"] is (sources[0] is not None)
    assert own["generated_text"] == other["generated_text"] == first["generated_text"]


# httpx leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_kill_during_a_replay_loses_nothing_committed(make_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = make_daemon()
    questions = [row["question"] for row in rows("trivia", "train")[::13]]
    done: list[str] = []

    def ask(question: str) -> None:
        if daemon.process is None or daemon.process.poll() is not None:
            return
        try:
            daemon.ask(question, max_tokens=8)
        except httpx.HTTPError:
            return
        done.append(question)
        if len(done) == 60:
            daemon.kill()

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, questions))
    assert 60 <= len(done) < len(questions)
    daemon.start()
    check = daemon.cli("cache", "check", "--json")
    assert check.returncode == 0, check.stdout + check.stderr
    report = json.loads(check.stdout)
    assert report["ok"] is True
    assert report["problems"] == []
    assert report["entries"] >= 50  # the last ones may not have been written yet
    truth = {question: daemon.ask(question, max_tokens=8, cache="off")["answer"] for question in done[:40]}
    outcomes = []
    for question, expected in truth.items():
        receipt = daemon.ask(question, max_tokens=8, cache="lossless")
        assert receipt["answer"] == expected
        outcomes.append(receipt["cache"]["outcome"])
    assert outcomes.count("exact") >= 35
    counters = daemon.get("/v1/semcache/status")["counters"]
    assert counters["damaged_blocks"] == counters["damaged_entries"] == 0
    daemon.stop()


def test_identical_requests_in_flight_are_computed_once(shared_daemon: RunningDaemon) -> None:
    row = rows("handbook", "train")[0]  # long enough that all arrive while the first is computed

    def ask(_: int) -> Any:
        return shared_daemon.ask(row["question"], system=row["context"], user="flight", max_tokens=32)

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        receipts = list(threads.map(ask, range(6)))
    assert sorted(r["cache"]["outcome"] for r in receipts) == ["exact"] * 5 + ["miss"]
    assert {r["cache"]["reason"] for r in receipts} <= {"empty", "in_flight", "identical"}
    assert len({r["answer"] for r in receipts}) == 1


def test_a_client_that_leaves_cancels_its_work(shared_daemon: RunningDaemon) -> None:
    # A prompt of many chunks: the look-up's result comes long before the last of them.
    body = {
        "messages": [{"role": "user", "content": "word " * 3500}], "stream": True, "user": "leaver", "cache": "off",
    }  # fmt: skip
    with shared_daemon.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as reply:
        next(reply.iter_lines())
    deadline = time.monotonic() + 60
    state = ""
    while state not in ("cancelled", "finished", "failed") and time.monotonic() < deadline:
        newest = shared_daemon.get("/v1/semcache/requests")["requests"]
        state = next(r["state"] for r in newest if r["user"].endswith("/leaver"))
    assert state == "cancelled"
    assert shared_daemon.get("/v1/semcache/status")["queue"] == {"running": 0, "waiting": 0}


def test_clearing_beside_a_running_request_removes_what_was_answered(shared_daemon: RunningDaemon) -> None:
    shared_daemon.ask(QUESTION, user="cleared")
    # Its look-up is done and thousands of tokens are still to be computed while another user's entries are removed.
    body = {"messages": [{"role": "user", "content": "word " * 3500}], "stream": True, "user": "beside"}
    with shared_daemon.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as reply:
        next(reply.iter_lines())
        with shared_daemon.http() as other:
            removed = other.post("/v1/semcache/clear", json={"user": "cleared"}).json()
    assert removed == {"entries": 1, "blocks": 1, "pinned": 0}
    assert shared_daemon.ask(QUESTION, user="cleared")["cache"]["outcome"] == "miss"


def test_a_pinned_answer_is_left_by_a_clear_and_its_prompt_stays_warm(
    make_daemon: Callable[..., RunningDaemon],
) -> None:
    daemon = make_daemon()
    asked = daemon.ask(QUESTION)
    daemon.ask(OTHER_WORDING)
    with daemon.http() as client:
        entries = client.get("/v1/semcache/entries", params={"match": QUESTION}).json()["entries"]
        entry_id = entries[0]["id"]
        pinned = client.put(f"/v1/semcache/entries/{entry_id}/pin").json()
        assert (pinned["id"], pinned["pinned"]) == (entry_id, True)
        assert pinned["blocks"] > 0
        assert client.put("/v1/semcache/entries/e_none/pin").status_code == 404
        removed = client.post("/v1/semcache/clear", json={}).json()
        assert (removed["entries"], removed["pinned"]) == (1, 1)
        again = daemon.ask(QUESTION)
        assert (again["cache"]["outcome"], again["answer"]) == ("exact", asked["answer"])
        body = {"messages": [{"role": "user", "content": QUESTION}], "cache": "prefix"}
        reply = client.post("/v1/chat/completions", json=body, headers={"Cache-Control": "no-store"})
        warm = reply.json()["semcache"]
        assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] == warm["usage"]["prompt_tokens"]
        path = f"/v1/semcache/entries/{entry_id}/pin"
        assert not client.delete(path).json()["pinned"]
        assert client.put(path).json()["pinned"]
        removed = client.post("/v1/semcache/clear", json={"all": True}).json()
        assert (removed["entries"], removed["pinned"]) == (1, 0)
    daemon.stop()


def test_stream_equals_plain_and_ends_with_the_receipt(shared_daemon: RunningDaemon) -> None:
    row = rows("support", "train")[0]
    body = {"messages": [{"role": "user", "content": row["question"]}], "user": "streamer", "cache": "off"}
    plain = shared_daemon.ask(row["question"], user="streamer", cache="off")
    with shared_daemon.http() as client:
        reply = client.post("/v1/chat/completions", json={**body, "stream": True})
    assert reply.headers["x-semcache-outcome"] == "miss"
    assert reply.headers["x-semcache-protocol"] == "1"
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["semcache"]["cache"]["outcome"] == "miss"
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert text == plain["answer"]
    assert len(chunks) > 5
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
    assert chunks[-1]["semcache"]["answer"] == text


def test_sampling_is_repeatable_by_seed_alone_and_in_a_crowd(shared_daemon: RunningDaemon) -> None:
    def sample(seed: int) -> str:
        receipt = shared_daemon.ask(
            "Tell me something", user="sampler", cache="off", temperature=1.5, seed=seed, max_tokens=24
        )
        return str(receipt["answer"])

    alone = [sample(seed) for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(sample, range(4))) == alone
    assert len(set(alone)) > 1
    unseeded = shared_daemon.ask("Tell me something", user="sampler", temperature=1.5, max_tokens=24)
    again = shared_daemon.ask("Tell me something", user="sampler", temperature=1.5, max_tokens=24)
    assert again["cache"]["outcome"] not in ("exact", "semantic")
    assert again["cache"]["reason"] == "params"
    assert again["cache"]["prefix_tokens"] == unseeded["usage"]["prompt_tokens"]


def test_cache_control_headers(shared_daemon: RunningDaemon) -> None:
    ask = shared_daemon.ask
    prompt = "Who painted the Mona Lisa?"
    only = {"messages": [{"role": "user", "content": prompt}], "user": "control"}
    with shared_daemon.http() as client:
        missing = client.post("/v1/chat/completions", json=only, headers={"Cache-Control": "only-if-cached"})
    assert missing.status_code == 504
    assert missing.json()["error"]["code"] == "only_if_cached_miss"
    assert ask(prompt, user="control", headers={"Cache-Control": "no-store"})["cache"]["stored"] is False
    assert ask(prompt, user="control")["cache"]["outcome"] == "miss"
    again = ask(prompt, user="control", headers={"Cache-Control": "no-cache"})["cache"]
    assert (again["outcome"], again["prefix_tokens"] > 0) == ("draft", True), "computed again, with the old as a draft"
    assert ask(prompt, user="control", headers={"Cache-Control": "only-if-cached"})["cache"]["outcome"] == "exact"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "prompt is empty"),
        ({"messages": [{"role": "user", "content": "hi"}], "temperature": 3}, 400, "temperature = 3"),
        ({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 0}, 400, "max_tokens = 0"),
        ({"messages": [{"role": "user", "content": "hi"}], "cache_strategy": "mine"}, 400, "per_user"),
        ({"messages": [{"role": "user", "content": "hi"}], "cache": "maybe"}, 400, "lossless"),
        ({"messages": [{"role": "user", "content": "hi"}], "user": "../x"}, 400, "../x"),
        ({"messages": [{"role": "user", "content": "hi"}], "user": "os:1/ann"}, 400, "os:1/ann"),
        ({"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function"}]}, 400, "tools"),
        (
            {"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_schema"}},
            400,
            "json_schema",
        ),
        ({"messages": [{"role": "user", "content": "hi"}], "n": 2}, 400, "n = 2"),
        ({"messages": [{"role": "user", "content": "hi"}], "temprature": 1}, 400, "temprature"),
        ({"messages": [{"role": "user", "content": "hi"}], "model": "gpt-5"}, 404, "gpt-5"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, 400, "last message"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "tokens"),
    ],
)  # fmt: skip
def test_bad_bodies_are_refused_in_one_clear_line(
    shared_daemon: RunningDaemon, body: dict[str, Any], status: int, says: str
) -> None:
    before = shared_daemon.get("/v1/semcache/status")["entries"]
    with shared_daemon.http() as client:
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert says in error["message"]
    assert "\n" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert shared_daemon.get("/v1/semcache/status")["entries"] == before


def test_bad_generate_values_are_422(shared_daemon: RunningDaemon) -> None:
    with shared_daemon.http() as client:
        for body in (
            {"inputs": ""},
            {"inputs": "x", "parameters": {"temperature": -1}},
            {"inputs": "x", "cache_strategy": "q"},
        ):
            reply = client.post("/generate", json=body)
            assert reply.status_code == 422, reply.text
            assert reply.json()["error"]["message"]
        assert client.post("/generate", content=b"\xff{").status_code == 422


def test_a_request_that_takes_too_long_is_504(make_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = make_daemon(daemon__request_timeout_s=1)
    body = {
        "messages": [{"role": "user", "content": "word " * 3000}],
        "max_tokens": 1000,
        "cache": "off",
        "temperature": 2,
    }
    with daemon.http() as client:
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 504, reply.status_code
    assert reply.json()["error"]["code"] == "timeout"
    assert daemon.get("/v1/semcache/status")["queue"] == {"running": 0, "waiting": 0}
    assert daemon.get("/health")["status"] == "ok"
    daemon.stop()


def test_stop_finishes_what_runs_and_refuses_what_comes(make_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = make_daemon()
    row = rows("handbook", "train")[1]
    body = {
        "messages": [{"role": "system", "content": row["context"]}, {"role": "user", "content": row["question"]}],
        "stream": True, "max_tokens": 16,
    }  # fmt: skip
    with daemon.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert daemon.process.wait(60) == 0
    assert not daemon.socket.exists()


def test_a_second_daemon_on_the_same_home_is_refused(shared_daemon: RunningDaemon) -> None:
    second = shared_daemon.cli("daemon", "run")
    assert second.returncode == 3
    assert "another semcache daemon" in second.stderr
    assert shared_daemon.ask(QUESTION, user="second")["answer"] == "Canberra"


def test_replay_and_a_daemon_that_dies_under_it(make_daemon: Callable[..., RunningDaemon]) -> None:
    """The command reports and saves what it has; after a restart it runs to the end and cleans up behind itself."""
    daemon = make_daemon()
    replay = ("replay", "trivia.json", "--users", "8", "--concurrency", "4", "--strategy", "global_only", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "semcache", *replay, "--no-autostart", "--out", "killed"],
        env=daemon.env, cwd=daemon.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with daemon.http() as client, client.stream("GET", "/v1/semcache/events") as events:
        ended = (line for line in events.iter_lines() if '"state": "finished"' in line)
        for _ in range(40):
            next(ended)
    daemon.kill()
    process.communicate(timeout=60)
    assert process.returncode == 3
    kept = (daemon.home / "killed" / "requests.jsonl").read_text().splitlines()
    assert len(kept) >= 10  # the client learns of an answer a little after the daemon has given it
    daemon.start()
    assert daemon.cli("cache", "check").returncode == 0
    again = daemon.cli(*replay, "--limit", "80")
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["requests"], summary["errors"]) == (80, 0)
    assert sum(row["n"] for row in summary["outcomes"].values()) == 80
    assert summary["outcomes"]["miss"]["correct"] >= 0.95
    # What is left is of the killed run, whose namespace nobody could clear; the second removed its own.
    assert len(daemon.get("/v1/semcache/entries?limit=10000")["entries"]) < 80
    assert daemon.cli("cache", "check").returncode == 0
    daemon.stop()
