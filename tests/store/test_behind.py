"""Writes that wait: read at once, written in order, bounded, and dropped only with a count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from semcache.store.behind import WriteBehind
from semcache.store.blocks import BlockKey
from semcache.store.disk import Unwritten
from semcache.store.files import Files
from semcache.store.incidents import Incidents
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, BOB, block_files, chain, file_bytes, put_chain, same, span, tail, tail_of

BLOCK_BYTES = span().size_bytes
FILE_BYTES = len(file_bytes(span()))


class Gate:
    """A disk that takes one block at a time, when it is told to."""

    def __init__(self) -> None:
        self.written: list[BlockKey] = []
        self.is_busy = threading.Event()
        self._may_go = threading.Semaphore(0)

    def write(self, block: Unwritten) -> None:
        self.is_busy.set()
        assert self._may_go.acquire(timeout=30)
        self.written.append(block.key)

    def let(self, num: int) -> None:
        for _ in range(num):
            self._may_go.release()


@contextmanager
def queue_of(num_blocks: int) -> Iterator[tuple[WriteBehind, Gate, Incidents]]:
    gate, incidents = Gate(), Incidents()
    behind = WriteBehind(num_blocks * BLOCK_BYTES, gate.write, incidents)
    yield behind, gate, incidents
    gate.let(1000)
    behind.close()


def block(key: BlockKey, compute_ms: float = 1.0, seed: int = 0) -> Unwritten:
    return Unwritten.of(key, span(seed=seed), ALICE, now_s=1.0, compute_ms=compute_ms)


def test_what_waits_can_be_read_and_is_written_in_order() -> None:
    keys = chain(4)
    with queue_of(9) as (behind, gate, _):
        for number, key in enumerate(keys):
            assert behind.offer(block(key, seed=number))
        for number, key in enumerate(keys):
            waiting = behind.get(key)
            assert waiting is not None
            assert same(waiting, span(seed=number))
            assert behind.get(replace(key, token_ids=(9, 9, 9, 9))) is None
        assert behind.status().items == 4
        gate.let(4)
        behind.flush()
        assert gate.written == keys
        assert (behind.status().items, behind.status().used_bytes) == (0, 0)
        assert behind.get(keys[0]) is None


@pytest.mark.parametrize("wait", ["flush", "discard"])
def test_nobody_waits_for_what_comes_meanwhile(wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = chain(9)
    is_busy, is_waiting, is_over = threading.Event(), threading.Event(), threading.Event()
    in_time: list[bool] = []

    def write(item: Unwritten) -> None:
        at = keys.index(item.key)
        is_busy.set()
        assert is_waiting.wait(30)
        if at + 1 < len(keys):
            behind.offer(block(keys[at + 1]))  # so that the queue is never empty
        if at == 1:
            in_time.append(is_over.wait(30))

    def wait_for(condition: Callable[[], bool]) -> bool:
        is_waiting.set()
        return really_wait_for(condition)

    behind = WriteBehind(9 * BLOCK_BYTES, write, Incidents())
    behind.offer(block(keys[0]))
    assert is_busy.wait(30)
    really_wait_for = behind._changed.wait_for
    monkeypatch.setattr(behind._changed, "wait_for", wait_for)
    if wait == "flush":
        behind.flush()
    else:
        behind.discard(lambda owner: owner == ALICE)
    is_over.set()
    behind.close()
    assert in_time == [True]


def test_a_full_queue_drops_what_saves_least_and_never_waits() -> None:
    keys = chain(6)
    with queue_of(3) as (behind, gate, incidents):
        assert behind.offer(block(keys[0], 5.0))
        assert gate.is_busy.wait(30)  # the first is being written and stays
        assert behind.offer(block(keys[1], 2.0))
        assert behind.offer(block(keys[2], 4.0))
        assert behind.offer(block(keys[3], 3.0))  # in place of the second
        assert not behind.offer(block(keys[4], 1.0))
        assert behind.status().used_bytes == 3 * BLOCK_BYTES
        assert incidents.snapshot() == {"dropped_writes": 2}
        gate.let(9)
        behind.flush()
        assert gate.written == [keys[0], keys[2], keys[3]]


def test_of_equals_the_end_of_a_prompt_is_dropped() -> None:
    keys = chain(5)
    with queue_of(3) as (behind, gate, _):
        taken = [behind.offer(block(key)) for key in keys]
        assert taken == [True, True, True, False, False]
        gate.let(9)
        behind.flush()
        assert gate.written == keys[:3]


def test_a_block_larger_than_the_queue_is_dropped_alone() -> None:
    keys = chain(2)
    with queue_of(1) as (behind, gate, incidents):
        assert behind.offer(block(keys[0]))
        huge = Unwritten.of(tail_of(keys, 300), tail(300), ALICE, now_s=1.0, compute_ms=1e9)
        assert not behind.offer(huge)
        assert incidents.snapshot() == {"dropped_writes": 1}
        gate.let(9)
        behind.flush()
        assert gate.written == [keys[0]]


def test_discarding_waits_for_the_one_that_is_being_written() -> None:
    keys = chain(4)
    with queue_of(9) as (behind, gate, _):
        for key in keys:
            behind.offer(block(key))
        assert gate.is_busy.wait(30)
        assert behind.discard(lambda owner: owner == BOB) == 0
        with ThreadPoolExecutor(1) as other:
            gone = other.submit(behind.discard, lambda owner: owner == ALICE)
            while behind.status().items > 1:  # what was not begun goes at once
                pass
            assert not gone.done()
            gate.let(1)
            assert gone.result(30) == 3
        behind.flush()
        assert gate.written == keys[:1]


def test_a_writer_that_raises_goes_on() -> None:
    incidents = Incidents()

    def write(item: Unwritten) -> None:
        raise ValueError("unforeseen")

    behind = WriteBehind(9 * BLOCK_BYTES, write, incidents)
    for key in chain(3):
        behind.offer(block(key))
    behind.flush()
    behind.close()
    assert incidents.snapshot() == {"write_failures": 3}
    assert not behind.offer(block(chain(1)[0]))
    assert incidents.snapshot() == {"write_failures": 4}


# In a store

QUEUED = StoreLimits(1 << 20, 1 << 24, write_queue_bytes=1 << 20)


@pytest.fixture
def queued(open_store: OpenStore) -> Store:
    return open_store(QUEUED)


class SlowFiles(Files):
    """A disk that writes nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = threading.Event()

    def _write(self, path: Path, pieces: Sequence[bytes | memoryview], *, durable: bool) -> None:
        assert self.may_write.wait(30)
        super()._write(path, pieces, durable=durable)


def test_everything_is_there_before_and_after_it_is_written(open_store: OpenStore, data_dir: Path) -> None:
    files = SlowFiles()
    store = open_store(QUEUED, files=files)
    keys = chain(3)
    spans = put_chain(store, keys)
    assert store.put_tail(tail_of(keys), tail(), ALICE)
    assert block_files(data_dir) == []
    assert store.write_queue().items == 4
    for _ in range(2):
        assert all(same(a, b) for a, b in zip(store.load_prefix(keys), spans, strict=True))
        found = store.load_prompt([], tail_of(keys)).record
        assert found is not None
        assert same(found.span, tail().span)
        assert store.missing([*keys, *chain(1, start=50)]) == chain(1, start=50)
        assert store.put_block(keys[0], span(seed=9), ALICE)  # there already
        files.may_write.set()
        store.flush()
    assert len(block_files(data_dir)) == 4
    assert store.write_queue().items == 0
    assert store.check().problems == ()


def test_closing_writes_what_waits(queued: Store, open_store: OpenStore) -> None:
    keys = chain(5)
    put_chain(queued, keys)
    again = open_store(QUEUED)
    assert len(again.load_prefix(keys)) == 5
    assert not queued.put_block(chain(1, start=100)[0], span(), ALICE)
    assert queued.counters()["write_failures"] == 1


def test_clearing_also_clears_what_waits(open_store: OpenStore, data_dir: Path) -> None:
    files = SlowFiles()
    store = open_store(QUEUED, files=files)
    mine, theirs = chain(3), chain(2, start=500)
    put_chain(store, theirs[:1], BOB)  # being written
    put_chain(store, mine)
    put_chain(store, theirs[1:], BOB)
    assert store.clear(user=ALICE.user) == (0, 3)
    assert store.load_prefix(mine) == []
    assert len(store.load_prefix(theirs)) == 2
    files.may_write.set()
    store.flush()
    assert len(block_files(data_dir)) == 2


def test_what_waits_keeps_nothing_else_in_memory(open_store: OpenStore) -> None:
    files = SlowFiles()
    store = open_store(QUEUED, files=files)
    whole = span(num_tokens=8, seed=4)
    first, second = chain(2)
    assert store.put_block(first, whole.slice(0, 4), ALICE)
    own = span(seed=5)
    assert store.put_block(second, own, ALICE)
    copied, same_memory = store.load_prefix([first, second])
    assert same(copied, whole.slice(0, 4))
    assert copied.keys.untyped_storage().nbytes() == copied.keys.nbytes
    assert same_memory.keys.data_ptr() == own.keys.data_ptr()
    files.may_write.set()
    store.flush()
    assert store.tier_status()["ram"].used_bytes == copied.size_bytes + own.size_bytes
    assert same(store.load_prefix([first])[0], copied)


def test_the_disk_budget_holds_with_a_queue(open_store: OpenStore) -> None:
    store = open_store(StoreLimits(1 << 20, 9 * FILE_BYTES, write_queue_bytes=1 << 20))
    for number in range(30):
        store.put_block(chain(1, start=100 * number)[0], span(), ALICE)
    store.flush()
    assert 0 < store.tier_status()["disk"].used_bytes <= 9 * FILE_BYTES
    assert store.counters()["evicted_blocks"] > 0
    assert store.check().problems == ()
