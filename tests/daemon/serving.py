"""A service over a small cache and any engine loop, wired as the daemon wires it."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from semcache.config import Config
from semcache.daemon.aftermath import Aftermath
from semcache.daemon.computation import Computations
from semcache.daemon.flights import Flights
from semcache.daemon.headroom import Headroom
from semcache.daemon.idle import IdleTime
from semcache.daemon.journal import Journal
from semcache.daemon.service import Service
from semcache.daemon.turns import Turns
from tests.daemon.cache.school import School
from tests.daemon.cache.words import MODEL


def service_of(
    school: School, engine: Any, pool: Executor, *, idle: IdleTime | None = None, headroom: Headroom | None = None,
    max_queue: int = 256,
) -> Service:  # fmt: skip
    """Blocks are as long as `words.MODEL` says."""
    config = replace(Config(), cache=replace(Config().cache, block_tokens=MODEL.block_tokens))
    turns, journal = Turns(chunk_tokens=MODEL.cuts.every), Journal(school.store)
    flights, aftermath = Flights(), Aftermath(pool)
    shared: dict[str, Any] = {
        "lookup": school.cache.lookup, "lessons": school.lessons, "turns": turns, "journal": journal,
        "flights": flights, "aftermath": aftermath, "pool": pool,
    }  # fmt: skip
    computations = Computations(
        max_queue=max_queue, headroom=headroom or Headroom(10**9), engine=engine,
        admission=school.cache.admission, **shared,
    )  # fmt: skip
    return Service(
        config=config, loop=engine, idle=idle or IdleTime(engine=engine, chores=[]), computations=computations, **shared
    )
