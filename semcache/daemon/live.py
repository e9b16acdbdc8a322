"""A question as it was asked, and the request it became while somebody listens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from semcache.daemon.request import CacheOptions, End, Event, Message, Request, Sampling


@dataclass(frozen=True)
class Ask:
    """A validated request body, before anything is looked at."""

    user: str
    messages: tuple[Message, ...]
    sampling: Sampling
    options: CacheOptions
    model: str | None = None
    template_options: tuple[tuple[str, str], ...] = ()
    explains: bool = False  # the receipt tells every candidate


class Live:
    """A request under way and the events it has published and nobody has read yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._head = asyncio.Event()
        self.request: Request
        self.task: asyncio.Task[None]

    def publish(self, event: Event) -> None:
        """From any thread; keeps the order."""
        self.soon(self._arrive, event)

    def soon(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call on the event loop, from any thread, after what was published before."""
        self._loop.call_soon_threadsafe(callback, *arguments)

    def _arrive(self, event: Event) -> None:
        self._events.put_nowait(event)
        self._head.set()

    async def head(self) -> None:
        """Wait for the first event: the look-up's result, or an early end."""
        await self._head.wait()

    async def events(self) -> AsyncIterator[Event]:
        """Every event up to and including the End."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, End):
                return
