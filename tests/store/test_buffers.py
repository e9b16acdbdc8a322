"""Memory that is made before it is needed: given out once, of the right sizes, within its limit."""

from __future__ import annotations

from pathlib import Path

from semcache.store.buffers import Buffers
from semcache.store.files import Files
from semcache.store.limits import StoreLimits

from .conftest import OpenStore
from .samples import ALICE, NO_RAM, PLENTY, chain, same, span, tail, tail_of


class WatchedFiles(Files):
    """Notes which buffers a read filled."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers = WatchedBuffers()


class WatchedBuffers(Buffers):
    def __init__(self) -> None:
        super().__init__()
        self.expected: list[int] = []

    def prepare(self, sizes_bytes: list[int]) -> None:  # type: ignore[override]
        self.expected = list(sizes_bytes)
        super().prepare(sizes_bytes)


def test_a_buffer_is_given_out_once_and_only_for_its_size() -> None:
    buffers = Buffers()
    buffers.prepare([100, 100, 5000])
    assert buffers.ready_bytes == 5200
    first, second = buffers.take(100), buffers.take(100)
    assert first is not second
    assert (len(first), len(second), buffers.ready_bytes) == (100, 100, 5000)
    assert len(buffers.take(100)) == len(buffers.take(99)) + 1 == 100
    assert buffers.ready_bytes == 5000
    buffers.close()
    assert buffers.ready_bytes == 0
    buffers.prepare([5000])
    assert buffers.ready_bytes == 0, "a store that is closed holds nothing"
    assert len(buffers.take(5000)) == 5000


def test_a_store_that_is_opened_again_has_memory_for_what_it_holds(open_store: OpenStore) -> None:
    keys = chain(3)
    store = open_store()
    for at, key in enumerate(keys):
        assert store.put_block(key, span(seed=at), ALICE)
    assert store.put_tail(tail_of(keys), tail(), ALICE)
    for limits, num_ready in ((PLENTY, 4), (NO_RAM, 0), (StoreLimits(ram_bytes=900, disk_bytes=1 << 24), 1)):
        files = WatchedFiles()
        assert isinstance(files.buffers, WatchedBuffers)
        store = open_store(limits, files)
        store.wait_until_prepared()
        assert (files.buffers.ready_bytes > 0) == (num_ready > 0)
        loaded, record = store.load_prefix(keys), store.load_prompt([], tail_of(keys)).record
        assert all(same(got, span(seed=at)) for at, got in enumerate(loaded))
        assert record is not None
        assert same(record.span, tail().span)
        store.close()
        assert len(files.buffers.expected) == num_ready, "no more than the RAM tier may hold"
        assert files.buffers.ready_bytes == 0


def test_what_a_buffer_held_before_is_in_no_file(tmp_path: Path) -> None:
    files, path = Files(), tmp_path / "file"
    path.write_bytes(b"0123456789")
    files.buffers.prepare([10])
    [used] = files.buffers._ready[10]
    used[:] = b"somebody's"
    content = files.read(path, 10)
    assert content is used
    assert content == b"0123456789"
