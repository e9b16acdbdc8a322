"""Idle time goes to the first chore that has something to do, and ends at once, whatever is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from semcache.daemon.idle import Compute, IdleTime, Worked
from semcache.daemon.request import RequestState
from semcache.daemon.served import ModelState, Served
from tests.daemon.cache.words import asked
from tests.daemon.idling import FakeLoop, drained, soon, through


class Errands:
    """A chore with a list of prompts; one that is refused stays on it."""

    def __init__(self, *prompts: str, refused: bool = False) -> None:
        self.prompts, self.refused = list(prompts), refused

    async def work(self, served: Served, compute: Compute) -> Worked:
        if not self.prompts:
            return Worked.NOTHING
        if self.refused:
            return Worked.REFUSED
        request = asked(self.prompts[0])
        request.id = self.prompts[0]
        await compute(request)
        if request.state is not RequestState.CANCELLED:
            del self.prompts[0]
        return Worked.SOMETHING


class Broken:
    """A chore with a fault of its own."""

    async def work(self, served: Served, compute: Compute) -> Worked:
        raise ZeroDivisionError


class House:
    """Idle time over an engine loop that the test drives."""

    def __init__(self, *chores: Any) -> None:
        self.loop, self.pool = FakeLoop(), ThreadPoolExecutor(1)
        engine: Any = self.loop
        self.time = IdleTime(engine=engine, chores=chores, idle_s=0)

    async def finish_next(self) -> str:
        request = await soon(self.loop.submitted.get())
        self.loop.end(request)
        return request.id

    async def through(self) -> None:
        await soon(through(self.time, self.pool))


@pytest.fixture
async def house() -> AsyncIterator[Callable[..., House]]:
    made: list[House] = []

    def make(*chores: Any) -> House:
        made.append(House(*chores))
        return made[-1]

    yield make
    for one in made:
        await soon(one.time.stop())
        one.pool.shutdown()


async def test_the_first_chore_with_something_to_do_comes_first(house: Callable[..., House]) -> None:
    first, second = Errands("a", "b"), Errands("c")
    one = house(first, second)
    one.time.begin()
    assert [await one.finish_next(), await one.finish_next()] == ["a", "b"]
    request = await soon(one.loop.submitted.get())
    first.prompts.append("d")
    one.loop.end(request)
    assert await one.finish_next() == "d"
    await one.through()
    assert [request.id for request in one.loop.requests] == ["a", "b", "c", "d"]


async def test_what_is_interrupted_is_begun_again(house: Callable[..., House]) -> None:
    one = house(Errands("a"), Errands("b"))
    one.time.begin()
    first = await soon(one.loop.submitted.get())
    one.time.end()
    assert first.state is RequestState.CANCELLED
    await drained(one.pool)
    assert len(one.loop.requests) == 1
    one.time.begin()
    assert [await one.finish_next(), await one.finish_next()] == ["a", "b"]


async def test_what_the_machine_refuses_waits_for_the_next_idle_time(house: Callable[..., House]) -> None:
    refused, other = Errands("a", refused=True), Errands("b")
    one = house(refused, other)
    one.time.begin()
    await one.through()
    assert one.loop.requests == []
    refused.refused = False
    one.time.begin()
    assert [await one.finish_next(), await one.finish_next()] == ["a", "b"]


async def test_a_fault_ends_this_idle_time_and_no_more(
    house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    chores: list[Any] = [Broken()]
    one = house(*chores)
    one.time.begin()
    await one.through()
    assert [record.name for record in caplog.records] == ["semcache.idle"]
    one.time._chores = [Errands("a")]
    one.time.begin()
    assert await one.finish_next() == "a"


@pytest.mark.parametrize("state", ["unloaded", "loading", "failed"])
async def test_it_never_wakes_the_model(house: Callable[..., House], state: Any) -> None:
    one = house(Errands("a"))
    one.loop.model = ModelState(state)
    one.time.begin()
    await one.through()
    assert one.loop.requests == []


async def test_stopping_ends_it_whatever_it_does(house: Callable[..., House]) -> None:
    await soon(house().time.stop())  # before it ever began
    waiting = house()
    waiting.time.begin()
    await soon(waiting.time.stop())
    errands = Errands("a")
    one = house(errands)
    one.time.begin()
    request = await soon(one.loop.submitted.get())
    await soon(one.time.stop())
    assert request.state is RequestState.CANCELLED
    assert one.time._task is not None
    assert one.time._task.done()
    assert errands.prompts == ["a"]


@pytest.mark.parametrize("num_steps", range(8))
async def test_stopping_is_not_lost_to_an_event_that_comes_with_it(house: Callable[..., House], num_steps: int) -> None:
    one = house(Errands())
    one.time.begin()
    for _ in range(num_steps):
        await asyncio.sleep(0)
    one.time.end()
    one.time.begin()
    await soon(one.time.stop())
