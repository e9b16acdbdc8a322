"""Deletes what is past the TTL although nobody writes: from time to time, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from semcache.store.incidents import Incidents

# Nothing is served past its TTL; this bounds how much longer it lies on the disk. Also for what expired while nobody
# ran, which may be much and must not keep a start waiting.
PERIOD_S = 60.0


class Expiry:
    """Calls `purge` every `PERIOD_S` seconds until it is closed."""

    def __init__(self, purge: Callable[[], object], incidents: Incidents) -> None:
        self._purge = purge
        self._incidents = incidents
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="semcache-expiry", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for a purge that is under way, then do no more."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_S):
            try:
                self._purge()
            except Exception as error:  # noqa: BLE001 - a thread that died would let everything lie for ever
                self._incidents.failure("write_failures", "expiry", repr(error))
