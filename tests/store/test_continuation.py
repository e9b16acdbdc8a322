"""Behind the last whole block: the stored block or record that shares most leading tokens, and only what is shared."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semcache.store.blocks import BlockKey, Continuation, block_chain, short_key, tail_key
from semcache.store.files import Files
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from semcache.store.tensors import TailRecord

from .conftest import OpenStore
from .samples import ALICE, BLOCK_TOKENS, FEW, NO_RAM, ROOT, BrokenFiles, Clock, block_files, file_bytes, same, span
from .test_tiers import SlowDisk

# Large ones too: their bytes are in another order than their numbers.
TOKENS = st.lists(st.sampled_from([0, 1, 2, 255, 256, 70000]), max_size=2 * BLOCK_TOKENS)
QUEUED = StoreLimits(ram_bytes=1 << 24, disk_bytes=1 << 24, write_queue_bytes=1 << 24)


def behind(*tokens: int, parent: str = ROOT, first_token: int = 0) -> Continuation:
    return Continuation(ROOT, parent, first_token, tokens)


def put(store: Store, *tokens: int, seed: int = 0) -> BlockKey:
    key = short_key(ROOT, ROOT, 0, tokens)
    assert store.put_block(key, span(len(tokens), seed), ALICE)
    return key


class HeldFiles(Files):
    """A disk that writes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write_temp(self, path: Path, pieces: Sequence[bytes | memoryview], *, durable: bool) -> Path:
        assert self.go.wait(30)
        return super().write_temp(path, pieces, durable=durable)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store.open(tmp_path_factory.mktemp("store") / "data", NO_RAM)
    yield store
    store.close()


@FEW
@given(st.lists(TOKENS.filter(bool), max_size=6), TOKENS)
def test_nothing_stored_shares_more(kept: Store, stored: list[list[int]], prompt: list[int]) -> None:
    kept.clear()
    spans = {tuple(tokens): span(len(tokens), seed) for seed, tokens in enumerate(stored)}
    for tokens, item in spans.items():
        if len(tokens) % 3 == 0:
            assert kept.put_tail(tail_key(ROOT, ROOT, 0, tokens), TailRecord(item, torch.ones(11)), ALICE)
        else:
            assert kept.put_block(short_key(ROOT, ROOT, 0, tokens), item, ALICE)
    wanted = behind(*prompt)
    best = max((wanted.num_shared(tokens) for tokens in spans), default=0)
    found = kept.load_continuation(wanted)
    if best == 0:
        assert found is None
        return
    assert found is not None
    assert found.num_tokens == best
    of_the_best = [item for tokens, item in spans.items() if wanted.num_shared(tokens) == best]
    assert any(same(found, item.slice(0, best)) for item in of_the_best)


def test_what_waits_to_be_written_is_found_too(data_dir: Path, clock: Clock) -> None:
    files = HeldFiles()
    store = Store.open(data_dir, QUEUED, clock=clock, files=files)
    try:
        put(store, 1, 2, 3)
        put(store, 1, 2, 7, 8, seed=1)
        assert not block_files(data_dir)
        found = store.load_continuation(behind(1, 2, 7))
        assert found is not None
        assert same(found, span(4, seed=1).slice(0, 3))
        assert store.load_continuation(behind(1, 2, 7), ms_per_token=1e9) is not None
        assert store.load_continuation(behind(2)) is None
        files.go.set()
        store.flush()
        assert store.load_continuation(behind(1, 2, 7)) is not None
    finally:
        files.go.set()
        store.close()


def test_only_children_of_the_same_parent_at_the_same_place(store: Store) -> None:
    first, second = block_chain(ROOT, range(2 * BLOCK_TOKENS), BLOCK_TOKENS, parent=ROOT)
    for seed, key in enumerate((first, second)):
        assert store.put_block(key, span(seed=seed), ALICE)
    found = store.load_continuation(behind(4, 5, 9, parent=first.hash, first_token=BLOCK_TOKENS))
    assert found is not None
    assert same(found, span(seed=1).slice(0, 2))
    assert store.load_continuation(behind(4, 5, 9)) is None
    assert store.load_continuation(behind(4, 5, 9, parent=second.hash, first_token=2 * BLOCK_TOKENS)) is None
    assert store.load_continuation(behind(4, 5, 9, parent=first.hash, first_token=BLOCK_TOKENS + 1)) is None
    other = Continuation("cd" * 32, first.hash, BLOCK_TOKENS, (4, 5, 9))
    assert store.load_continuation(other) is None, "what another root names is not this prompt's"
    assert store.load_continuation(behind()) is None


def test_what_is_too_old_hides_nothing(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(ram_bytes=0, disk_bytes=1 << 24, ttl_s=100))
    put(store, 1, 2, 3, 4)
    clock.now_s += 60
    put(store, 1, 2, 9)
    clock.now_s += 60
    found = store.load_continuation(behind(1, 2, 3, 4))
    assert found is not None
    assert found.num_tokens == 2


def test_a_use_is_counted(store: Store) -> None:
    key = put(store, 1, 2, 3)
    store.load_continuation(behind(1, 5))
    assert store._tiers.find([key])[key.hash].hits == 1


def test_a_damaged_file_is_a_miss_and_from_then_on_the_next_best_serves(open_store: OpenStore, data_dir: Path) -> None:
    store = open_store(NO_RAM)
    put(store, 1, 2, 7)
    best = put(store, 1, 2, 3, 9, seed=1)
    [path] = [path for path in block_files(data_dir) if path.name.startswith(best.hash)]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert store.load_continuation(behind(1, 2, 3, 4)) is None
    assert store.counters()["damaged_blocks"] == 1
    found = store.load_continuation(behind(1, 2, 3, 4))
    assert found is not None
    assert same(found, span(3).slice(0, 2))
    assert store.missing([best]) == [best]
    assert store.check().ok


@pytest.mark.parametrize(
    "damage",
    ["token_ids = x'0100000002000000'", "token_ids = x'010000'", "token_ids = 'text'", "first_token = 1",
     "kind = 'tail'", "num_tokens = 2", "first_token = x'00'"],
)  # fmt: skip
def test_a_row_whose_name_is_not_that_of_its_tokens_is_a_miss(store: Store, damage: str) -> None:
    put(store, 1, 2, 3)
    with store._db.transaction() as connection:
        connection.execute(f"UPDATE blocks SET {damage}")
    assert store.load_continuation(behind(1, 2, 3, 4)) is None


def test_it_is_not_loaded_where_computing_what_is_shared_is_faster(data_dir: Path, clock: Clock) -> None:
    disk = SlowDisk(ms_per_byte=1.0)
    store = Store.open(data_dir, NO_RAM, clock=clock, files=disk, timer=lambda: disk.now_s)
    try:
        put(store, 1, 2, 3, 4)
        assert store.load_continuation(behind(1, 2)) is not None  # measures the disk
        file_ms = float(len(file_bytes(span())))
        num_read = disk.num_read
        assert store.load_continuation(behind(1, 2), ms_per_token=0.98 * file_ms / 2) is None
        assert disk.num_read == num_read
        assert store.counters()["computed_instead"] == 1
        assert store.load_continuation(behind(1, 2), ms_per_token=1.02 * file_ms / 2) is not None
        assert store.load_continuation(behind(1, 2)) is not None
    finally:
        store.close()


def test_a_disk_that_cannot_be_read_is_a_miss(open_store: OpenStore) -> None:
    files = BrokenFiles()
    store = open_store(NO_RAM, files)
    put(store, 1, 2, 3)
    files.fail["read"] = errno.EIO
    assert store.load_continuation(behind(1, 2)) is None
    assert store.counters()["read_failures"] == 1


def test_the_two_steps_go_through_the_index(store: Store) -> None:
    asked: list[str] = []
    store._db.connection.set_trace_callback(asked.append)
    store.load_continuation(behind(1, 2))
    store._db.connection.set_trace_callback(None)
    around = [sql for sql in asked if "token_ids" in sql and "ORDER BY" in sql]
    assert len(around) == 2
    for sql in around:
        plan = " ".join(
            str(tuple(row)) for row in store._db.rows(f"EXPLAIN QUERY PLAN {sql.replace('-Inf', '-9e999')}")
        )
        assert "USING INDEX blocks_children (parent=? AND token_ids" in plan, plan
        assert "TEMP B-TREE" not in plan
