"""Work that is due once requests have ended: writing, accounting. Who needs its result waits, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from semcache.daemon.request import Request


class Aftermath:
    """What is still to be written, and for whom."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._due: dict[asyncio.Future[None], Request] = {}

    def add(self, future: asyncio.Future[None], request: Request) -> None:
        """Count `future` as due for `request`, also while the request still runs."""
        self._due[future] = request
        future.add_done_callback(lambda done: self._due.pop(done, None))

    def run(self, request: Request, work: Callable[..., None], *arguments: object) -> None:
        """Do blocking work for an ended request on the pool."""
        self.add(
            asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)), request
        )

    async def settled(self, user: str | None = None) -> None:
        """Wait until what ended before now, of everybody or of one user, is written; not for what still runs."""
        due = {
            future
            for future, request in self._due.items()
            if request.state.is_terminal and user in (None, request.user)
        }
        if due:
            await asyncio.wait(due)

    async def drained(self) -> None:
        """Wait until nothing is due; call it once no request runs any more."""
        while self._due:
            await asyncio.wait(set(self._due))
