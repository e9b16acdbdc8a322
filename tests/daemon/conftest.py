"""A store with room for everything, for tests of what decides over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from semcache.store.limits import StoreLimits
from semcache.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    yield store
    store.close()
