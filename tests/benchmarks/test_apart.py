"""A system in a process of its own is asked like any other, and its failures are its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import pytest

from benchmarks.peers.answer import Answer, PeerError
from benchmarks.peers.apart import Apart
from benchmarks.peers.memory import peak_memory


class Echo:
    name = "echo"

    def __init__(self, offset: int) -> None:
        if offset < 0:
            raise ValueError("no negative offset")
        self._offset = offset

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, sampled: bool = False) -> list[Answer]:
        if not prompts:
            raise RuntimeError("nothing to answer")
        if max_tokens == 0:
            os._exit(3)
        now = time.perf_counter()
        tokens = [tuple(token + self._offset for token in prompt[:max_tokens]) for prompt in prompts]
        return [Answer(said, now, (now,), now) for said in tokens]

    def close(self) -> None:
        pass


def test_answers_and_their_times_come_from_the_other_process() -> None:
    echo = Apart("echo", Echo, 100)
    before = time.perf_counter()
    [first, second] = echo.ask([[1, 2, 3], [4]], 2)
    assert (first.tokens, second.tokens) == ((101, 102), (104,))
    assert before <= first.started <= time.perf_counter(), "one clock"
    assert echo.pid not in (None, os.getpid())
    with peak_memory("cpu", echo.pid) as peak:
        echo.ask([[1]], 1)
    assert peak.mb is None or peak.mb >= 0
    with pytest.raises(PeerError, match="echo: RuntimeError: nothing to answer"):
        echo.ask([], 1)
    assert echo.ask([[5]], 1)[0].tokens == (105,), "one failure ends nothing"
    with pytest.raises(PeerError, match="echo: its process ended"):
        echo.ask([[1]], 0)
    echo.close()


def test_a_system_that_cannot_be_made_says_why() -> None:
    with pytest.raises(PeerError, match="echo: ValueError: no negative offset"):
        Apart("echo", Echo, -1)
