"""Single flight: followers get the leader's answer, or a turn of their own when it has none."""

from __future__ import annotations

import asyncio

from semcache.daemon.cache.strategy import Scope
from semcache.daemon.flights import Flights
from tests.daemon.entries import an_entry

A, B, C = (Scope("user", name) for name in "abc")
MINE, SHARED = Scope("user", "mine"), Scope("global", "shared")


async def test_followers_get_what_the_leader_landed_with() -> None:
    flights = Flights()
    flight = flights.take_off([A, B], "k")
    assert flights.leader_of([B], "k") == (B, flight)
    assert flights.leader_of([B], "other") is None
    assert flights.leader_of([C], "k") is None
    waiting = [asyncio.create_task(flight.wait()) for _ in range(3)]
    entry = an_entry()
    flight.land(entry)
    assert await asyncio.gather(*waiting) == [entry] * 3
    # Landed but not committed: a late request still finds it.
    late = flights.leader_of([A], "k")
    assert late == (A, flight)
    assert await late[1].wait() is entry
    flights.clear(flight)
    assert flights.leader_of([A], "k") is None
    assert len(flights) == 0


async def test_a_leader_that_fails_lands_with_nothing() -> None:
    flights = Flights()
    flight = flights.take_off([A], "k")
    waiting = asyncio.create_task(flight.wait())
    await asyncio.sleep(0)
    flights.clear(flight)
    assert await waiting is None
    flight.land(an_entry())  # too late, and harmless
    assert await flight.wait() is None


async def test_a_follower_that_leaves_does_not_take_the_leader_with_it() -> None:
    flights = Flights()
    flight = flights.take_off([A], "k")
    leaving, staying = asyncio.create_task(flight.wait()), asyncio.create_task(flight.wait())
    await asyncio.sleep(0)
    leaving.cancel()
    entry = an_entry()
    flight.land(entry)
    assert await staying is entry


async def test_the_first_of_two_leaders_in_one_scope_stays() -> None:
    flights = Flights()
    first = flights.take_off([SHARED], "k")
    second = flights.take_off([MINE, SHARED], "k")
    assert flights.leader_of([SHARED], "k") == (SHARED, first)
    assert flights.leader_of([MINE], "k") == (MINE, second)
    flights.clear(second)
    assert flights.leader_of([SHARED], "k") == (SHARED, first)


async def test_a_follower_is_told_through_which_of_its_own_scopes_it_found_the_leader() -> None:
    flights = Flights()
    flight = flights.take_off([MINE, SHARED], "k")
    assert flights.leader_of([A, SHARED], "k") == (SHARED, flight)
    assert flights.leader_of([MINE, SHARED], "k") == (MINE, flight)
