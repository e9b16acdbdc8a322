"""Whatever comes into the inbox is taken, refused or given back: no request is lost in it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from semcache.daemon.inbox import Command, Inbox, Submit
from tests.daemon.cache.words import asked

TIMEOUT_S = 60
NUM_THREADS, NUM_ROUNDS = 8, 50


def submit() -> Submit:
    return Submit(asked("what is rain"), lambda _request, _kv: None, None)


def test_it_keeps_the_order_and_counts_requests_alone() -> None:
    inbox, first, second = Inbox(), submit(), submit()
    command = Command(None)
    for message in (first, command, second):
        assert inbox.put(message)
    assert inbox.num_submits == 2
    assert [inbox.get(block=False) for _ in range(4)] == [first, command, second, None]
    assert inbox.num_submits == 0
    assert inbox.get(block=True, timeout_s=0) is None


def test_once_closed_it_gives_back_what_nobody_took_and_refuses_the_rest() -> None:
    inbox, left = Inbox(), submit()
    inbox.put(left)
    inbox.put(Command(None))
    assert inbox.close() == [left]
    assert not inbox.put(submit())
    assert inbox.num_submits == 0
    assert inbox.get(block=False) is None


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as they can: whatever can come in between, does."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("hasty_threads")
def test_what_comes_while_it_closes_is_either_given_back_or_refused() -> None:
    request = submit().request

    def put_until_refused(inbox: Inbox, start: threading.Barrier) -> list[Submit]:
        start.wait(TIMEOUT_S)
        accepted = list[Submit]()
        while inbox.put(message := Submit(request, lambda _request, _kv: None, None)):
            accepted.append(message)
        return accepted

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in range(NUM_ROUNDS):
            inbox, start = Inbox(), threading.Barrier(NUM_THREADS + 1)
            putting = [pool.submit(put_until_refused, inbox, start) for _ in range(NUM_THREADS)]
            start.wait(TIMEOUT_S)
            while inbox.num_submits < NUM_THREADS:
                pass
            given_back = inbox.close()
            accepted = [message for future in putting for message in future.result(TIMEOUT_S)]
            assert sorted(map(id, given_back)) == sorted(map(id, accepted))
            assert inbox.num_submits == 0
            assert inbox.get(block=False) is None
