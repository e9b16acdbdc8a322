"""A conversation through a real daemon: once nobody asks, the next turn restores prompt and answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import RunningDaemon
from tests.datasets import rows

CHUNK_TOKENS = 16


@pytest.fixture(scope="module")
def daemon(make_module_daemon: Callable[..., RunningDaemon]) -> Iterator[RunningDaemon]:
    running = make_module_daemon(engine__prefill_chunk_tokens=CHUNK_TOKENS, cache__block_tokens=CHUNK_TOKENS)
    yield running
    running.stop()  # whatever it is prefilling
    assert "Traceback" not in running.log


def say(running: RunningDaemon, messages: list[dict[str, str]], **body: Any) -> Any:
    with running.http() as client:
        reply = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 200, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def long_answers() -> list[str]:
    """Questions whose answers take about fifty tokens."""
    found = {row["group"]: row["question"] for row in rows("support", "train") if len(row["answer"]) > 90}
    return list(found.values())


@pytest.mark.parametrize("chunk_tokens", [CHUNK_TOKENS, 128])
def test_the_next_turn_restores_prompt_and_answer(
    daemon: RunningDaemon, shared_daemon: RunningDaemon, chunk_tokens: int
) -> None:
    running = daemon if chunk_tokens == CHUNK_TOKENS else shared_daemon
    messages = [{"role": "system", "content": "You answer for the makers of a sensor."}]
    previous = num_ahead = 0
    for question in long_answers()[:4]:
        messages.append({"role": "user", "content": question})
        with running.happenings("turn") as finished:
            body = say(running, messages, user="talks")
            usage = body["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            assert cached >= previous - chunk_tokens
            answer = body["choices"][0]["message"]["content"]
            previous = usage["total_tokens"]
            if previous // chunk_tokens > usage["prompt_tokens"] // chunk_tokens:
                event = next(event for event in finished if event["request"] == body["id"])
                assert event["tokens"] > previous - chunk_tokens
                num_ahead += 1
        off = say(running, messages, cache="off")
        assert off["choices"][0]["message"]["content"] == answer
        assert off["usage"]["total_tokens"] == previous
        messages.append({"role": "assistant", "content": answer})
    assert num_ahead >= (4 if chunk_tokens == CHUNK_TOKENS else 1)
    assert cached >= chunk_tokens


def test_who_clears_finds_nothing_of_the_conversation_later(daemon: RunningDaemon) -> None:
    question = long_answers()[0]
    messages = [{"role": "user", "content": question}]
    with daemon.happenings("turn") as finished:
        other = say(daemon, messages, user="other")
        answer = say(daemon, messages, user="cleared")["choices"][0]["message"]["content"]
        with daemon.http() as client:
            assert client.post("/v1/semcache/clear", json={"user": "cleared"}).status_code == 200
        # The newest comes first: what was cleared would have been prefilled before this.
        assert next(event for event in finished if event["request"] == other["id"])
    going_on = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    for user, is_restored in (("other", True), ("cleared", False)):
        usage = say(daemon, going_on, user=user, max_tokens=1)["usage"]
        assert (usage["prompt_tokens_details"]["cached_tokens"] > CHUNK_TOKENS) == is_restored


def test_a_replayed_answer_is_a_conversation_too(daemon: RunningDaemon) -> None:
    question = long_answers()[1]
    messages = [{"role": "user", "content": question}]
    body = say(daemon, messages, user="again", cache_strategy="global_only")
    answer = body["choices"][0]["message"]["content"]
    with daemon.happenings("turn") as finished:
        replayed = say(daemon, messages, user="replayed", cache_strategy="global_user")
        assert replayed["semcache"]["cache"]["outcome"] == "exact"
        assert next(event for event in finished if event["request"] == replayed["id"])
    going_on = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    usage = say(daemon, going_on, user="replayed", max_tokens=1)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= body["usage"]["total_tokens"] - CHUNK_TOKENS
