"""KV comes back bit-identical from RAM and from disk, and any damage is a miss."""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semcache.store.blocks import BlockKey, tail_key
from semcache.store.files import Files
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import (
    ALICE,
    BLOCK_TOKENS,
    BOB,
    NO_RAM,
    BrokenFiles,
    Clock,
    block_files,
    chain,
    file_bytes,
    put_chain,
    same,
    span,
    tail,
    tail_of,
)


@pytest.mark.parametrize("limits", [StoreLimits(1 << 20, 1 << 20), NO_RAM, StoreLimits(1 << 20, 1 << 20, durable=True)])
def test_round_trip_before_and_after_a_restart(open_store: OpenStore, limits: StoreLimits) -> None:
    store = open_store(limits)
    keys = chain(3)
    spans = put_chain(store, keys)
    record, empty = tail(3), tail(0, seed=5)
    assert store.put_tail(tail_of(keys), record, ALICE, 2.5)
    assert store.put_tail(tail_of(keys, 0), empty, ALICE)
    for reopen_with in (None, limits, NO_RAM):
        again = store if reopen_with is None else open_store(reopen_with)
        for _ in range(2):
            loaded = again.load_prefix(keys)
            assert len(loaded) == 3
            assert all(same(left, right) for left, right in zip(loaded, spans, strict=True))
            found = again.load_prompt([], tail_of(keys)).record
            assert found is not None
            assert same(found.span, record.span)
            assert torch.equal(found.logits, record.logits)
            none = again.load_prompt([], tail_of(keys, 0)).record
            assert none is not None
            assert none.span.num_tokens == 0
        assert again.missing([*keys, *chain(1, start=50)]) == chain(1, start=50)
        assert again.check().ok


def test_a_longer_prompt_gets_the_leading_run(store: Store) -> None:
    keys = chain(5)
    put_chain(store, keys[:2])
    store.put_block(keys[3], span(), ALICE)
    assert len(store.load_prefix(keys)) == 2
    assert store.load_prefix([]) == []
    assert store.load_prefix(keys[2:]) == []


def test_what_is_stored_is_a_copy(store: Store) -> None:
    (key,) = chain(1)
    item = span(7)
    big = dataclasses.replace(item)
    part = big.slice(1, 5)
    want = torch.clone(part.keys)
    assert store.put_block(key, part, ALICE)
    item.keys.zero_()
    assert torch.equal(store.load_prefix([key])[0].keys, want)


def test_files_lie_where_the_contract_says_and_are_private(store: Store, data_dir: Path) -> None:
    keys = chain(1)
    put_chain(store, keys)
    store.put_tail(tail_of(keys), tail(), ALICE)
    name, tail_name = keys[0].hash, tail_of(keys).hash
    block = data_dir / "kv" / "mini" / name[:2] / f"{name}.safetensors"
    record = data_dir / "kv" / "mini" / tail_name[:2] / f"{tail_name}.tail.safetensors"
    assert block_files(data_dir) == sorted([block, record])
    for path in (block, record, data_dir / "semcache.db", data_dir / "semcache.db-wal", data_dir / "store.lock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in (data_dir, data_dir / "kv", data_dir / "kv" / "mini", block.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def flip(offset: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[offset] ^= 1
        path.write_bytes(content)

    return damage


def swap_with_another(path: Path) -> None:
    other = next(p for p in block_files(path.parents[3]) if p != path)
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "length byte": flip(0),
    "header byte": flip(20),
    "first data byte": flip(-512),
    "last data byte": flip(-1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a terabyte more": lambda path: os.truncate(path, 1 << 40),
    "a named pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "zero length": lambda path: os.truncate(path, 0),
    "zero page": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
    "swapped with another": swap_with_another,
    "another valid file": lambda path: path.write_bytes(
        next(p for p in block_files(path.parents[3]) if p != path).read_bytes()
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_ends_the_run_is_counted_and_can_be_computed_again(
    open_store: OpenStore, data_dir: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(NO_RAM)
    keys = chain(3)
    spans = put_chain(store, keys)
    path = data_dir / "kv" / "mini" / keys[1].hash[:2] / f"{keys[1].hash}.safetensors"
    DAMAGE[name](path)
    with caplog.at_level(logging.WARNING, "semcache.store"):
        assert len(store.load_prefix(keys)) == 1
    assert store.counters()["damaged_blocks"] == 1
    assert keys[1].hash[:12] in caplog.text
    assert not path.exists()
    assert store.missing(keys) == [keys[1]]
    store.check(fix=True)
    assert store.check().problems == ()
    for key in store.missing(keys):
        assert store.put_block(key, spans[keys.index(key)], ALICE)
    assert all(same(left, right) for left, right in zip(store.load_prefix(keys), spans, strict=True))


def test_a_damaged_tail_is_a_miss(open_store: OpenStore, data_dir: Path) -> None:
    store = open_store(NO_RAM)
    store.put_tail(tail_of([]), tail(), ALICE)
    flip(-1)(block_files(data_dir)[0])
    assert store.load_prompt([], tail_of([])).record is None
    assert store.counters()["damaged_blocks"] == 1


def test_a_forced_hash_collision_is_a_miss(store: Store) -> None:
    (key,) = chain(1)
    put_chain(store, [key])
    others = [
        dataclasses.replace(key, token_ids=(9, 9, 9, 9)),
        dataclasses.replace(key, parent="00" * 32),
        dataclasses.replace(key, first_token=4),
    ]
    for other in others:
        assert store.load_prefix([other]) == []
    assert store.load_prompt([], BlockKey(key.hash, None, 0, key.token_ids, "tail")).record is None
    assert store.counters()["hash_collisions"] == 4
    assert len(store.load_prefix([key])) == 1
    assert store.put_block(others[0], span(seed=9), ALICE)
    assert store.load_prefix([key]) == []
    assert same(store.load_prefix([others[0]])[0], span(seed=9))


def test_a_damaged_row_is_a_miss_and_is_replaced_by_the_next_write(store: Store) -> None:
    (key,) = chain(1)
    put_chain(store, [key])
    with store._db.transaction() as connection:
        connection.execute("UPDATE blocks SET token_ids = x'00', model = '../..'")
    assert store.load_prefix([key]) == []
    assert store.put_block(key, span(), ALICE)
    assert len(store.load_prefix([key])) == 1


@pytest.mark.parametrize("value", ["text", "", b"\xff", math.inf])
@pytest.mark.parametrize("column", ["size_bytes", "hits", "compute_ms", "last_used_at"])
def test_a_number_that_no_checksum_covers_fails_no_request(open_store: OpenStore, column: str, value: object) -> None:
    """Of a prompt in RAM and of one on disk, with and without known speeds; only a size that is none is a miss."""
    keys, others = chain(3), chain(2, start=500)
    store = open_store(NO_RAM)
    spans = put_chain(store, keys)
    put_chain(store, others)
    with store._db.transaction() as connection:
        connection.execute(f"UPDATE blocks SET {column} = ? WHERE hash = ?", (value, keys[1].hash))
    some = StoreLimits(4 * span().size_bytes, 1 << 20, eviction="saved_compute")
    store = open_store(some)
    store.load_prefix(others)  # measures the disk
    for ms_per_token in (1e9, None, 1e9):
        assert len(store.load_prefix(keys, ms_per_token=ms_per_token)) == (1 if column == "size_bytes" else 3)
    assert store.counters()["damaged_blocks"] == (column == "size_bytes")
    for key in store.missing(keys):
        assert store.put_block(key, spans[keys.index(key)], ALICE)
    with store._db.transaction() as connection:
        connection.execute(f"UPDATE blocks SET {column} = ? WHERE hash = ?", (value, keys[1].hash))
    for ms_per_token in (1e9, None, 1e9):  # measures RAM too
        loaded = store.load_prefix(keys, ms_per_token=ms_per_token)
        assert all(same(left, right) for left, right in zip(loaded, spans, strict=True))
    put_chain(store, chain(4, start=900))  # RAM lets something go
    store.check(fix=True)
    assert store.check().problems == ()
    status = store.tier_status()["ram"]
    assert status.used_bytes == status.items * span().size_bytes <= status.limit_bytes


def test_a_row_cannot_point_outside_the_folder(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(NO_RAM)
    (key,) = chain(1)
    put_chain(store, [key])
    with store._db.transaction() as connection:
        connection.execute("UPDATE blocks SET model = '../../..'")
    assert store.load_prefix([key]) == []
    assert store.counters()["damaged_blocks"] == 1


@pytest.mark.parametrize("call", ["write", "publish"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_write_that_the_machine_refuses_is_false_and_leaves_nothing(
    open_store: OpenStore, data_dir: Path, call: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    files = BrokenFiles()
    store = open_store(files=files)
    keys = chain(2)
    files.fail[call] = code
    with caplog.at_level(logging.WARNING, "semcache.store"):
        assert not store.put_block(keys[0], span(), ALICE)
        assert not store.put_tail(tail_of([]), tail(), ALICE)
    assert len(caplog.records) == 1
    assert store.counters()["write_failures"] == 2
    assert block_files(data_dir) == []
    assert store.missing(keys) == keys
    assert store.load_prefix(keys) == []
    assert store.tier_status()["ram"].items == 0
    assert store.check().problems == ()
    files.fail.clear()
    put_chain(store, keys)
    assert len(store.load_prefix(keys)) == 2


def test_a_row_that_cannot_be_written_takes_its_file_along(store: Store, data_dir: Path) -> None:
    with store._db.transaction() as connection:
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON blocks BEGIN SELECT raise(ABORT, 'disk full'); END")
    assert not store.put_block(chain(1)[0], span(), ALICE)
    assert block_files(data_dir) == []
    assert store.counters()["write_failures"] == 1


def test_a_read_that_the_machine_refuses_is_a_miss_that_heals(open_store: OpenStore) -> None:
    files = BrokenFiles()
    store = open_store(NO_RAM, files)
    keys = chain(2)
    put_chain(store, keys)
    files.fail["read"] = errno.EIO
    assert store.load_prefix(keys) == []
    assert store.counters()["read_failures"] == 1
    files.fail.clear()
    assert len(store.load_prefix(keys)) == 2


def test_ram_stays_within_its_bytes_and_keeps_what_is_used(open_store: OpenStore) -> None:
    size = span().size_bytes
    store = open_store(StoreLimits(ram_bytes=4 * size, disk_bytes=1 << 20))
    keys = [key for number in range(6) for key in chain(1, start=100 * number)]
    for key in keys[:4]:
        store.put_block(key, span(), ALICE)
    store.load_prefix([keys[0]])
    store.put_block(keys[4], span(), ALICE)
    status = store.tier_status()["ram"]
    assert status.used_bytes <= status.limit_bytes
    assert status.used_bytes == status.items * size
    assert store._tiers.ram.get(store._blocks.by_hashes([keys[0].hash])[0]) is not None
    assert store._tiers.ram.get(store._blocks.by_hashes([keys[1].hash])[0]) is None
    assert store.counters()["evicted_from_ram"] > 0
    assert [len(store.load_prefix([key])) for key in keys] == [1, 1, 1, 1, 1, 0]


def test_ram_does_not_outlive_the_row(store: Store) -> None:
    keys = chain(2)
    put_chain(store, keys)
    assert store.tier_status()["ram"].items == 2
    assert store.clear(user=ALICE.user) == (0, 2)
    assert store.tier_status()["ram"].items == 0
    assert store.load_prefix(keys) == []


def test_blocks_expire_with_the_ttl(open_store: OpenStore, clock: Clock, data_dir: Path) -> None:
    store = open_store(StoreLimits(1 << 20, 1 << 20, ttl_s=60))
    keys = chain(2)
    put_chain(store, keys)
    clock.now_s += 60
    assert store.load_prefix(keys) == []
    assert store.missing(keys) == keys
    put_chain(store, keys[:1])
    assert len(store.load_prefix(keys)) == 1
    assert store.evict() == 1
    assert len(block_files(data_dir)) == 1


def test_a_block_is_written_once_whoever_asks(store: Store, data_dir: Path) -> None:
    keys = chain(1)
    put_chain(store, keys)
    before = block_files(data_dir)[0].stat().st_ino
    assert store.put_block(keys[0], span(seed=3), BOB)
    assert block_files(data_dir)[0].stat().st_ino == before
    assert same(store.load_prefix(keys)[0], span(seed=0))


def test_the_wrong_number_of_tokens_is_our_own_mistake(store: Store) -> None:
    with pytest.raises(AssertionError):
        store.put_block(chain(1)[0], span(3), ALICE)
    with pytest.raises(AssertionError):
        store.put_block(tail_key("00", None, 0, [1, 2, 3]), span(3), ALICE)


class SlowDisk(Files):
    """A disk on which every byte takes its time, on a timer that nothing else moves."""

    def __init__(self, ms_per_byte: float) -> None:
        super().__init__()
        self.ms_per_byte = ms_per_byte
        self.now_s = 0.0
        self.num_read = 0
        self._lock = threading.Lock()

    def read(self, path: Path, size_bytes: int) -> bytearray:
        content = super().read(path, size_bytes)
        with self._lock:  # several are read at once
            self.num_read += 1
            self.now_s += self.ms_per_byte * len(content) / 1e3
        return content


def test_no_more_is_loaded_than_is_faster_than_computing(data_dir: Path, clock: Clock) -> None:
    disk = SlowDisk(ms_per_byte=1.0)
    store = Store.open(data_dir, NO_RAM, clock=clock, files=disk, timer=lambda: disk.now_s)
    try:
        keys = chain(5)
        put_chain(store, keys)
        assert len(store.load_prefix(keys, ms_per_token=1e-9)) == 5  # the first load is how the speed is known
        ms_per_token = len(file_bytes(span())) / BLOCK_TOKENS
        num_read = disk.num_read
        assert store.load_prefix(keys, ms_per_token=0.98 * ms_per_token) == []
        assert disk.num_read == num_read
        assert store.counters()["computed_instead"] == 5
        assert len(store.load_prefix(keys, ms_per_token=1.02 * ms_per_token)) == 5
        assert len(store.load_prefix(keys)) == 5  # who does not say how fast it computes gets everything
    finally:
        store.close()


def test_what_ram_holds_of_a_slow_prompt_is_loaded(data_dir: Path, clock: Clock) -> None:
    disk = SlowDisk(ms_per_byte=1.0)
    keys = chain(6)
    store = Store.open(data_dir, StoreLimits(int(3.5 * span().size_bytes), 1 << 20), clock=clock, files=disk,
                       timer=lambda: disk.now_s)  # fmt: skip
    try:
        put_chain(store, keys)
        store.load_prefix(keys)  # measures the disk
        for _ in range(2):
            store.load_prefix(keys[:2])  # these two are in RAM afterwards
        num_read = disk.num_read
        assert len(store.load_prefix(keys, ms_per_token=1.0)) == 2
        assert disk.num_read == num_read
    finally:
        store.close()


def test_a_run_from_disk_stays_in_order_and_ends_where_it_is_damaged(open_store: OpenStore, data_dir: Path) -> None:
    store = open_store(NO_RAM)
    keys = chain(24)
    spans = put_chain(store, keys)
    assert all(same(left, right) for left, right in zip(store.load_prefix(keys), spans, strict=True))
    for at in (20, 9):
        flip(-1)(data_dir / "kv" / "mini" / keys[at].hash[:2] / f"{keys[at].hash}.safetensors")
    assert len(store.load_prefix(keys)) == 9
    assert store.counters()["damaged_blocks"] == 1  # what lies behind is not looked at
    assert len(store.load_prefix(keys[10:])) == 10


def test_what_was_read_from_disk_is_then_in_ram(open_store: OpenStore) -> None:
    put_chain(open_store(NO_RAM), chain(3))
    files = BrokenFiles()
    store = open_store(StoreLimits(1 << 20, 1 << 20), files)
    assert len(store.load_prefix(chain(3))) == 3
    files.fail["read"] = errno.EIO
    assert len(store.load_prefix(chain(3))) == 3
    assert store.counters()["read_failures"] == 0
