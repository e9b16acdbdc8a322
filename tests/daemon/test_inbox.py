"""Whatever comes into the inbox is taken, refused or given back: no request is lost in it."""

from __future__ import annotations

from semcache.daemon.inbox import Command, Inbox, Submit
from tests.daemon.cache.words import asked


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
