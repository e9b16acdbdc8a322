"""What went wrong or was thrown away: counted for status, logged in one line without any prompt, never raised."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

LOG = logging.getLogger("semcache.store")

# Shown as 0 before the first one.
COUNTERS = (
    "damaged_blocks", "damaged_entries", "damaged_aliases", "damaged_evidence", "damaged_decisions",
    "damaged_history", "hash_collisions", "evicted_blocks", "evicted_entries", "evicted_aliases", "expired_blocks",
    "expired_entries", "write_failures", "read_failures", "unlink_failures", "refused_embeddings", "swept_files",
    "dropped_writes", "computed_instead",
)  # fmt: skip

# A full disk fails every write; one line a minute says it as well as thousands.
QUIET_S = 60.0


class Incidents:
    """Thread-safe counters by name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._last_logged_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def count(self, name: str, num: int = 1) -> None:
        """Something ordinary, such as an eviction."""
        with self._lock:
            self._counts[name] += num

    def damage(self, name: str, what: str, why: object) -> None:
        """A row or file that does not say what it should; every one is logged."""
        self.count(name)
        LOG.warning("%s: %s: %s; treated as absent", name, what, why)

    def failure(self, name: str, what: str, why: object) -> None:
        """An operation that the machine refused; logged at most once a minute for each name."""
        with self._lock:
            self._counts[name] += 1
            total, now_s = self._counts[name], time.monotonic()
            quiet = now_s - self._last_logged_s.get(name, -QUIET_S) < QUIET_S
            if not quiet:
                self._last_logged_s[name] = now_s
        if not quiet:
            LOG.warning("%s (%d so far): %s: %s", name, total, what, why)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """A read that the database refuses is a miss."""
        try:
            yield
        except sqlite3.Error as error:
            self.failure("read_failures", what, error)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """A write that the database refuses did not happen."""
        try:
            yield
        except (sqlite3.Error, UnicodeEncodeError) as error:  # text with lone surrogates has no UTF-8
            self.failure("write_failures", what, error)

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)
