"""`rounding` through a real daemon: the next turn restores prompt and answer at once, without any idle work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.amount import IS_NIGHTLY
from tests.conftest import RunningDaemon
from tests.test_turns import long_answers, say

BLOCK_TOKENS = 64
SETTINGS = {"cache__exactness": "rounding", "cache__block_tokens": BLOCK_TOKENS}


def cached(body: Any) -> int:
    num_tokens: int = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return num_tokens


def answer_of(body: Any) -> str:
    text: str = body["choices"][0]["message"]["content"]
    return text


@pytest.fixture(scope="module")
def running(make_module_daemon: Callable[..., RunningDaemon]) -> Iterator[RunningDaemon]:
    started = make_module_daemon(**SETTINGS)
    yield started
    started.stop()
    assert "Traceback" not in started.log


def test_the_next_turn_restores_prompt_and_answer_also_after_a_restart(running: RunningDaemon) -> None:
    messages = [{"role": "system", "content": "You answer for the makers of a sensor."}]
    previous = 0
    for number, question in enumerate(long_answers()[:4]):
        messages.append({"role": "user", "content": question})
        body = say(running, messages)
        # At most the answer's last token was never computed, and its text may be cut into other tokens at the end.
        assert cached(body) >= previous - 2
        assert body["semcache"]["cache"]["outcome"] == ("prefix" if previous else "miss")
        off = say(running, messages, cache="off")
        assert cached(off) == 0
        assert answer_of(off) == answer_of(body)
        previous = body["usage"]["total_tokens"]
        messages.append({"role": "assistant", "content": answer_of(body)})
        if number == 1 or (IS_NIGHTLY and number):
            running.stop()
            running.start()
    assert previous > 2 * BLOCK_TOKENS
    checked = running.cli("cache", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_prompt_that_goes_another_way_keeps_what_is_common(running: RunningDaemon) -> None:
    system = {"role": "system", "content": "You answer for the makers of a sensor. Be brief and be kind. " * 4}
    first, second = ([system, {"role": "user", "content": question}] for question in long_answers()[:2])
    num_first = say(running, first, user="another-way")["usage"]["prompt_tokens"]
    body = say(running, second, user="another-way")
    assert BLOCK_TOKENS < cached(body) < num_first
    assert cached(body) % BLOCK_TOKENS, "in the middle of a block"
    assert answer_of(body) == answer_of(say(running, second, cache="off"))


def test_the_two_modes_share_a_folder_and_no_kv(make_daemon: Callable[..., RunningDaemon]) -> None:
    """Answers are found in both: what was said does not depend on how KV is reused."""
    running = make_daemon(**SETTINGS)
    messages = [{"role": "user", "content": long_answers()[0] + " Please tell me all about it." * 20}]
    said = say(running, messages)
    for exactness in ("bitwise", "rounding"):
        running.stop()
        running.settings["cache.exactness"] = exactness
        running.start()
        again = say(running, messages, cache="prefix", max_tokens=8)
        assert (cached(again) > 0) == (exactness == "rounding")
        if exactness == "bitwise":
            num_mine = cached(say(running, messages, cache="prefix", max_tokens=8))
            assert num_mine == said["usage"]["prompt_tokens"]
    assert say(running, messages)["semcache"]["cache"]["outcome"] == "exact"
