"""Waiting for what ended requests left to write, and for nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from semcache.daemon.aftermath import Aftermath
from semcache.daemon.request import RequestState

TIMEOUT_S = 60


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def ended(user: str = "os:1", state: RequestState = RequestState.FINISHED) -> Any:
    return SimpleNamespace(user=user, state=state)


async def test_settled_waits_for_the_writing_of_what_ended(pool: ThreadPoolExecutor) -> None:
    aftermath, gate, written = Aftermath(pool), threading.Event(), []

    def write(what: str) -> None:
        assert gate.wait(TIMEOUT_S)
        written.append(what)

    aftermath.run(ended(), write, "answer")
    waiting = asyncio.create_task(aftermath.settled())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        await waiting
    assert written == ["answer"]


async def test_nobody_waits_for_another_user_or_for_what_still_runs(pool: ThreadPoolExecutor) -> None:
    aftermath, loop = Aftermath(pool), asyncio.get_running_loop()
    running, others = ended(state=RequestState.DECODING), ended("os:2")
    open_ended = {name: loop.create_future() for name in ("running", "others")}
    aftermath.add(open_ended["running"], running)
    aftermath.add(open_ended["others"], others)
    async with asyncio.timeout(TIMEOUT_S):
        await aftermath.settled("os:1")
        open_ended["others"].set_result(None)
        await aftermath.settled()
        running.state = RequestState.CANCELLED
        waiting = asyncio.create_task(aftermath.settled("os:1"))
        await asyncio.sleep(0)
        assert not waiting.done()
        open_ended["running"].set_result(None)
        await waiting


async def test_drained_waits_for_what_is_added_meanwhile(pool: ThreadPoolExecutor) -> None:
    aftermath, loop = Aftermath(pool), asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    aftermath.add(first, ended(state=RequestState.DECODING))
    first.add_done_callback(lambda _: aftermath.add(second, ended()))
    draining = asyncio.create_task(aftermath.drained())
    await asyncio.sleep(0)
    first.set_result(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not draining.done()
    second.set_result(None)
    async with asyncio.timeout(TIMEOUT_S):
        await draining
        await aftermath.drained()


async def test_writing_that_fails_keeps_nobody_waiting(pool: ThreadPoolExecutor) -> None:
    aftermath = Aftermath(pool)

    def fail() -> None:
        raise OSError("full")

    aftermath.run(ended(), fail)
    (failing,) = aftermath._due
    async with asyncio.timeout(TIMEOUT_S):
        await aftermath.settled()
        await aftermath.drained()
    assert isinstance(failing.exception(), OSError)


async def test_who_stops_waiting_leaves_the_writing_alone(pool: ThreadPoolExecutor) -> None:
    aftermath, due = Aftermath(pool), asyncio.get_running_loop().create_future()
    aftermath.add(due, ended())
    waiting = asyncio.create_task(aftermath.settled())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert not due.cancelled()
    due.set_result(None)
