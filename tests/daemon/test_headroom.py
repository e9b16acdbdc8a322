"""Never more is held than there is, whoever asks comes to it, users take turns, and who leaves holds nothing."""

from __future__ import annotations

import asyncio
import random

import pytest

from semcache.daemon.headroom import Headroom, Hold


async def settled() -> None:
    """Everything that can go on has gone on."""
    for _ in range(3):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that wait for headroom, and the order in which they got it."""

    def __init__(self, limit_bytes: int) -> None:
        self.headroom = Headroom(limit_bytes)
        self.holds: dict[str, Hold] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, size_bytes: int, user: str = "ann") -> None:
        async def wait() -> None:
            self.holds[name] = await self.headroom.take(user, size_bytes)

        self.tasks[name] = asyncio.create_task(wait())
        await settled()

    async def give_back(self, name: str) -> None:
        self.holds[name].give_back()
        await settled()

    @property
    def served(self) -> str:
        return " ".join(self.holds)


async def test_who_finds_no_room_waits_for_it() -> None:
    crowd = Crowd(100)
    await crowd.ask("a", 60)
    await crowd.ask("b", 40)
    await crowd.ask("c", 1)
    assert (crowd.served, crowd.headroom.held_bytes) == ("a b", 100)
    await crowd.give_back("b")
    assert (crowd.served, crowd.headroom.held_bytes) == ("a b c", 61)


async def test_what_was_not_needed_goes_to_the_next() -> None:
    crowd = Crowd(100)
    await crowd.ask("a", 100)
    await crowd.ask("b", 70)
    crowd.holds["a"].shrink(30)
    await settled()
    assert (crowd.served, crowd.headroom.held_bytes) == ("a b", 100)
    crowd.holds["a"].shrink(50)
    assert crowd.headroom.held_bytes == 100, "a hold never grows"
    for _ in range(2):
        await crowd.give_back("a")
    assert crowd.headroom.held_bytes == 70, "given back once"


async def test_one_prompt_always_fits() -> None:
    for limit_bytes in (0, 1, 10):
        crowd = Crowd(limit_bytes)
        await crowd.ask("huge", 10**9)
        await crowd.ask("too", 10**9)
        assert crowd.served == "huge"
        await crowd.give_back("huge")
        assert crowd.served == "huge too"


async def test_who_needs_nothing_never_waits() -> None:
    crowd = Crowd(10)
    await crowd.ask("a", 10)
    await crowd.ask("b", 10)
    await crowd.ask("none", 0)
    assert crowd.served == "a none"


async def test_a_large_one_is_not_passed_over() -> None:
    crowd = Crowd(100)
    await crowd.ask("a", 50)
    await crowd.ask("large", 100)
    await crowd.ask("small", 10)
    assert crowd.served == "a"
    await crowd.give_back("a")
    assert crowd.served == "a large"


async def test_users_take_turns() -> None:
    crowd = Crowd(10)
    for i in range(4):
        await crowd.ask(f"ann{i}", 10)
    for i in range(2):
        await crowd.ask(f"bob{i}", 10, "bob")
    for name in ("ann0", "ann1", "bob0", "ann2", "bob1"):
        await crowd.give_back(name)
    assert crowd.served == "ann0 ann1 bob0 ann2 bob1 ann3"


async def test_who_leaves_the_line_holds_up_nobody() -> None:
    crowd = Crowd(100)
    await crowd.ask("a", 50)
    await crowd.ask("large", 100)
    await crowd.ask("small", 10)
    crowd.tasks["large"].cancel()
    await settled()
    assert crowd.served == "a small"
    await crowd.ask("b", 60)
    crowd.tasks["b"].cancel()
    await crowd.give_back("a")
    assert (crowd.served, crowd.headroom.held_bytes) == ("a small", 10)


async def test_who_leaves_in_the_moment_of_the_grant_holds_nothing() -> None:
    crowd = Crowd(100)
    await crowd.ask("a", 100)
    await crowd.ask("b", 100)
    crowd.holds["a"].give_back()
    crowd.tasks["b"].cancel()
    await settled()
    assert (crowd.served, crowd.headroom.held_bytes) == ("a", 0)
    await crowd.ask("c", 100)
    assert crowd.served == "a c"


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_the_limit_holds_and_everybody_is_served(seed: int) -> None:
    rng, crowd = random.Random(seed), Crowd(100)
    held: list[str] = []
    for i in range(200):
        what = rng.random()
        if what < 0.5:
            await crowd.ask(f"{i}", rng.randrange(130), rng.choice(["ann", "bob", "eve"]))
        elif what < 0.7 and (waiting := [name for name in crowd.tasks if name not in crowd.holds]):
            crowd.tasks[rng.choice(waiting)].cancel()
        elif held:
            name = held.pop(rng.randrange(len(held)))
            crowd.holds[name].shrink(rng.randrange(100)) if rng.random() < 0.5 else crowd.holds[name].give_back()
        await settled()
        held += [name for name in crowd.holds if name not in held and crowd.holds[name].size_bytes]
        assert crowd.headroom.held_bytes == sum(hold.size_bytes for hold in crowd.holds.values()) <= 100
    for _ in crowd.tasks:
        for hold in crowd.holds.values():
            hold.give_back()
        await settled()
    assert crowd.headroom.held_bytes == 0
    assert all(name in crowd.holds or task.cancelled() for name, task in crowd.tasks.items())
