"""What is past the TTL leaves the disk although nobody writes."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from semcache.store import expiry
from semcache.store.expiry import Expiry
from semcache.store.files import Files
from semcache.store.incidents import Incidents
from semcache.store.limits import StoreLimits

from .conftest import OpenStore
from .samples import Clock, block_files, chain, entry, put_chain
from .world import rows_of

TIMEOUT_S = 60


class Unlinking(Files):
    """Says when the first file was removed."""

    def __init__(self) -> None:
        super().__init__()
        self.removed = threading.Event()

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.removed.set()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "PERIOD_S", 1e-3)


def test_what_expired_while_nobody_ran_is_deleted_though_nobody_writes(
    open_store: OpenStore, clock: Clock, data_dir: Path
) -> None:
    store = open_store()
    put_chain(store, chain(2))
    store.put_entry(entry(1))
    store.put_entry(entry(2, pinned=True), [key.hash for key in chain(1, start=500)])
    put_chain(store, chain(1, start=500))
    clock.now_s += 100
    files = Unlinking()
    store = open_store(StoreLimits(0, 1 << 24, ttl_s=60), files=files)
    assert files.removed.wait(TIMEOUT_S)
    store.close()  # it waits for a purge that is under way
    left = rows_of(data_dir, ("blocks", "entries"))
    assert [row[0] for row in left["blocks"]] == [key.hash for key in chain(1, start=500)]
    assert [row[0] for row in left["entries"]] == [entry(2).id]
    assert len(block_files(data_dir)) == 1


def test_a_purge_that_fails_is_not_the_last() -> None:
    incidents, again = Incidents(), threading.Event()

    def purge() -> None:
        if incidents.snapshot():
            again.set()
        raise sqlite3.OperationalError("disk I/O error")

    timer = Expiry(purge, incidents)
    assert again.wait(TIMEOUT_S)
    timer.close()
    num = incidents.snapshot()["write_failures"]
    assert num >= 2
    assert not timer._thread.is_alive()
