"""A whole prompt: its record is verified before any block is read, and blocks come as they are asked for."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from semcache.store.blocks import BlockKey
from semcache.store.files import Files
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, NO_RAM, PLENTY, chain, put_chain, same, span, tail, tail_of


class CountedFiles(Files):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._names_lock = threading.Lock()

    def read(self, path: Path, size_bytes: int) -> bytearray:
        with self._names_lock:
            self.names.append(path.name)
        return super().read(path, size_bytes)


KEYS = chain(4)
RECORD = tail_of(KEYS)


@pytest.fixture
def files() -> CountedFiles:
    return CountedFiles()


def path_of(data_dir: Path, key: BlockKey) -> Path:
    [path] = (data_dir / "kv").rglob(f"{key.hash}*.safetensors")
    return path


def filled(open_store: OpenStore, files: CountedFiles, limits: StoreLimits = NO_RAM) -> Store:
    """A prompt of four blocks and its record, all on disk only."""
    store = open_store()
    put_chain(store, KEYS)
    assert store.put_tail(RECORD, tail(), ALICE)
    return open_store(limits, files)


def test_the_record_is_read_before_the_blocks_and_these_as_they_are_asked_for(
    open_store: OpenStore, files: CountedFiles
) -> None:
    store = filled(open_store, files, PLENTY)
    load = store.load_prompt(KEYS, RECORD)
    assert load.record is not None
    assert same(load.record.span, tail().span)
    assert (load.is_at_hand, len(files.names)) == (False, 1)
    assert all(same(got, span(seed=at)) for at, got in enumerate(load.blocks))
    assert len(files.names) == 5
    again = store.load_prompt(KEYS, RECORD)
    assert again.is_at_hand
    assert len(list(again.blocks)) == 4
    assert len(files.names) == 5, "all of it is in RAM now"


@pytest.mark.parametrize("at", range(4))
def test_a_block_that_proves_damaged_ends_it(
    open_store: OpenStore, data_dir: Path, files: CountedFiles, at: int
) -> None:
    store = filled(open_store, files)
    load = store.load_prompt(KEYS, RECORD)
    assert load.record is not None
    path = path_of(data_dir, KEYS[at])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(list(load.blocks)) == at
    assert store.counters()["damaged_blocks"] == 1
    later = store.load_prompt(KEYS, RECORD)
    assert (later.record, len(list(later.blocks))) == (None, at)


def test_without_every_file_there_is_no_record(open_store: OpenStore, data_dir: Path, files: CountedFiles) -> None:
    store = filled(open_store, files)
    path = path_of(data_dir, KEYS[2])
    content = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(content[:-1])):
        damage()
        load = store.load_prompt(KEYS, RECORD)
        assert load.record is None
        path.write_bytes(content)
        assert len(list(load.blocks)) == 4, "what is there when it is read counts"
    assert store.load_prompt(KEYS, RECORD).record is not None
    assert store.load_prompt(KEYS[:3], RECORD).record is not None, "a record belongs to its own tokens only"
    path_of(data_dir, RECORD).unlink()
    load = store.load_prompt(KEYS, RECORD)
    assert (load.record, len(list(load.blocks))) == (None, 4)
    assert store.load_prompt(KEYS[:1], tail_of(KEYS[:1])).record is None


def test_who_wants_no_more_has_what_was_read_kept(open_store: OpenStore, files: CountedFiles) -> None:
    store = filled(open_store, files, PLENTY)
    load = store.load_prompt(KEYS, RECORD)
    with closing(load.blocks) as blocks:
        next(blocks)
    assert list(load.blocks) == []
    assert store.tier_status()["ram"].items == 2, "one block and the record"


def test_what_is_not_worth_loading_is_not_begun_with(open_store: OpenStore, files: CountedFiles) -> None:
    store = filled(open_store, files)
    list(store.load_prompt(KEYS, RECORD).blocks)  # measures the disk
    files.names.clear()
    load = store.load_prompt(KEYS, RECORD, ms_per_token=1e-12)
    assert (load.record, list(load.blocks), files.names) == (None, [], [])
    assert store.counters()["computed_instead"] == 4
