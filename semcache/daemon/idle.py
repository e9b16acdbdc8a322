"""Idle time: what is worth computing while nobody asks anything, one kind of work after the other.

The user's work comes first: this begins only when nothing runs, and whatever is under way is cancelled when somebody
asks. Runs on the event loop; forward passes go to the engine thread like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import Protocol

from semcache.daemon.cache.admit import PromptKV
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import Request
from semcache.daemon.served import Served

log = logging.getLogger("semcache.idle")

# A pause this long is idle time; between the requests of one conversation it rarely is.
IDLE_S = 0.5

# Runs a request to its end, whatever that is, and gives its prompt KV where it was to be stored.
Compute = Callable[[Request], Awaitable[PromptKV | None]]


class Worked(Enum):
    """What became of a chore's turn."""

    NOTHING = auto()  # nothing is due
    SOMETHING = auto()  # one thing was done or interrupted; there may be more
    REFUSED = auto()  # the machine does not let it; to be tried in the next idle time


class Chore(Protocol):
    """One kind of idle work. What is interrupted must stay due; what cannot be done must not."""

    async def work(self, served: Served, compute: Compute) -> Worked:
        """Do one thing that is due."""


class IdleTime:
    """Gives the time in which nothing is asked to the chores, the first one that has something to do."""

    def __init__(self, *, engine: EngineLoop, chores: Sequence[Chore], idle_s: float = IDLE_S) -> None:
        self._engine = engine
        self._chores = chores
        self._idle_s = idle_s
        self._idle = asyncio.Event()
        self._busy = asyncio.Event()
        self._running: Request | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Nothing is asked any more; on the event loop."""
        self._busy.clear()
        self._idle.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def end(self) -> None:
        """Somebody asks: stop at once; what was not finished stays due."""
        self._idle.clear()
        self._busy.set()
        if self._running is not None:
            self._engine.cancel(self._running)

    async def stop(self) -> None:
        """For good; call it once nothing is asked any more."""
        self.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await self._idle.wait()
            try:
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(self._idle_s):
                    await self._busy.wait()
            except TimeoutError:
                await self._work_off_safely()

    async def _work_off_safely(self) -> None:
        try:
            await self._work_off()
        except Exception:
            log.exception("idle work failed")
            self._idle.clear()

    async def _work_off(self) -> None:
        """Until nothing is due or somebody asks; then wait for the next idle time."""
        while not self._busy.is_set():
            served = self._engine.served
            if served is None or self._engine.model.state != "ready":
                break  # idle work never wakes the model
            if await self._work_once(served) is not Worked.SOMETHING:
                break
        if not self._busy.is_set():
            self._idle.clear()

    async def _work_once(self, served: Served) -> Worked:
        for chore in self._chores:
            worked = await chore.work(served, partial(self._compute, served))
            if worked is not Worked.NOTHING or self._busy.is_set():
                return worked
        return Worked.NOTHING

    async def _compute(self, served: Served, request: Request) -> PromptKV | None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[PromptKV | None] = loop.create_future()

        def hand_over(_done: Request, kv: PromptKV | None) -> None:
            loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(kv))

        request.gives_way = True
        self._running = request
        self._engine.submit(request, hand_over, served)
        if self._busy.is_set():  # since the last look, while the pool was at work
            self._engine.cancel(request)
        try:
            return await ended
        finally:
            self._running = None
