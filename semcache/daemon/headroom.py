"""Host memory for KV that is loaded and not yet in a slot: who fills how much of it, and who is next. Pure Python.

Whoever loads KV takes the most that it may need before anything is read, gives back at once what it did not need, and
the rest when the request has its slot or has ended. Where too little is left it waits: users take turns, as they do
for slots, and nobody is passed over for being large. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass


class Hold:
    """Bytes that one request may fill."""

    def __init__(self, headroom: Headroom, size_bytes: int) -> None:
        self._headroom = headroom
        self.size_bytes = size_bytes

    def shrink(self, size_bytes: int) -> None:
        """Keep at most so many bytes."""
        left_bytes = min(size_bytes, self.size_bytes)
        freed_bytes, self.size_bytes = self.size_bytes - left_bytes, left_bytes
        self._headroom.free(freed_bytes)

    def give_back(self) -> None:
        """All of it; harmless the second time."""
        self.shrink(0)


@dataclass(frozen=True)
class _Waiter:
    size_bytes: int
    granted: asyncio.Future[Hold]


class Headroom:
    """At most `limit_bytes` are held; a request that needs more than that gets all of it, alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = max(1, limit_bytes)
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self.held_bytes = 0

    async def take(self, user: str, size_bytes: int) -> Hold:
        """Wait for so many bytes; who is cancelled meanwhile holds none. Nothing waits for nothing."""
        waiter = _Waiter(min(size_bytes, self._limit_bytes), asyncio.get_running_loop().create_future())
        if waiter.size_bytes <= 0:
            return Hold(self, 0)
        self._waiting.setdefault(user, deque()).append(waiter)
        self._grant()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.cancelled():
                self._grant()  # it may have been the one that all others waited behind
            else:
                waiter.granted.result().give_back()  # granted and cancelled in the same moment
            raise

    def free(self, size_bytes: int) -> None:
        """What a hold gives back."""
        self.held_bytes -= size_bytes
        self._grant()

    def _grant(self) -> None:
        while (head := self._head()) is not None:
            user, waiter = head
            if self.held_bytes + waiter.size_bytes > self._limit_bytes:
                return
            self.held_bytes += waiter.size_bytes
            waiter.granted.set_result(Hold(self, waiter.size_bytes))
            self._waiting[user].popleft()
            self._waiting.move_to_end(user)

    def _head(self) -> tuple[str, _Waiter] | None:
        """Who is next; those who left are forgotten."""
        while self._waiting:
            user, line = next(iter(self._waiting.items()))
            while line and line[0].granted.cancelled():
                line.popleft()
            if line:
                return user, line[0]
            del self._waiting[user]
        return None
