"""Single flight: identical requests that arrive while the first is being computed wait for its answer.

Lives on the event loop. A leader that fails or is cancelled resolves to None and one of its followers takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from semcache.daemon.cache.strategy import Scope
from semcache.store.entries import Entry

Key = tuple[str, str]  # scope name, request key


class Flight:
    """One computation and everybody who waits for it."""

    def __init__(self) -> None:
        self._landed: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        self.is_computing = False  # the engine has it, and will say when it is done

    def land(self, answer: Entry | None) -> None:
        if not self._landed.done():
            self._landed.set_result(answer)

    async def wait(self) -> Entry | None:
        """The leader's answer, or None when it gave none. A follower may be cancelled without touching the leader."""
        return await asyncio.shield(self._landed)


class Flights:
    """The computations that are under way, by where their answers will be readable."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Flight] = {}

    def leader_of(self, read: Sequence[Scope], request_key: str) -> tuple[Scope, Flight] | None:
        """The flight that will land in one of the follower's scopes, and which of them that is."""
        for scope in read:
            flight = self._by_key.get((scope.name, request_key))
            if flight is not None:
                return scope, flight
        return None

    def take_off(self, write: Sequence[Scope], request_key: str) -> Flight:
        flight = Flight()
        for scope in write:
            self._by_key.setdefault((scope.name, request_key), flight)
        return flight

    def clear(self, flight: Flight) -> None:
        """Forget a flight once its answer is committed, or will never be."""
        self._by_key = {key: other for key, other in self._by_key.items() if other is not flight}
        flight.land(None)

    def __len__(self) -> int:
        return len(set(map(id, self._by_key.values())))
