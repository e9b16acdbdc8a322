"""What other threads ask of the engine's thread, in the order in which they asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from semcache.daemon.handover import HandOver
from semcache.daemon.request import Request
from semcache.daemon.served import Served


@dataclass(frozen=True)
class Submit:
    """A request, and the model that its tokens, KV and logits are of; None where that is whichever is loaded."""

    request: Request
    hand_over: HandOver
    served: Served | None


@dataclass(frozen=True)
class Command:
    """Run on the engine thread between two steps; None ends the thread."""

    action: Callable[[], None] | None


class Inbox:
    """A queue that can be closed: what nobody will take is refused, so no request is lost in it."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Submit | Command] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing comes in between the last look and the closing
        self._is_closed = False
        self.num_submits = 0

    def put(self, message: Submit | Command) -> bool:
        """False once it is closed."""
        with self._lock:
            if not self._is_closed:
                self.num_submits += isinstance(message, Submit)
                self._queue.put(message)
            return not self._is_closed

    def get(self, *, block: bool, timeout_s: float | None = None) -> Submit | Command | None:
        """The next message; None where there is none, or none came in time."""
        try:
            message = self._queue.get(block, timeout_s)
        except queue.Empty:
            return None
        with self._lock:
            self.num_submits -= isinstance(message, Submit)
        return message

    def close(self) -> list[Submit]:
        """Nothing comes in any more; the requests that nobody took."""
        with self._lock:
            self._is_closed = True
        left = []
        while (message := self.get(block=False)) is not None:
            if isinstance(message, Submit):
                left.append(message)
        return left
