"""A store in a fresh folder, on a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semcache.store.files import Files
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .samples import PLENTY, Clock

OpenStore = Callable[..., Store]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def open_store(data_dir: Path, clock: Clock) -> Iterator[OpenStore]:
    """Open the test's data directory as often as needed; every store is closed at the end."""
    opened: list[Store] = []

    def open_(limits: StoreLimits = PLENTY, files: Files | None = None) -> Store:
        for store in opened:
            store.close()
        opened.append(Store.open(data_dir, limits, clock=clock, files=files))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()
