"""Writes that wait for the disk while nobody waits for them: a bounded queue and the one thread that empties it.

What waits can already be read. When the queue is full, the write that saves the least is dropped and counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from semcache.store.blocks import BlockKey, Owner
from semcache.store.disk import Unwritten
from semcache.store.incidents import Incidents
from semcache.store.ram import TierStatus
from semcache.store.tensors import Stored


class WriteBehind:
    """Bounded in bytes; `write` is called with one block at a time, in the order they came. Thread-safe."""

    def __init__(self, limit_bytes: int, write: Callable[[Unwritten], object], incidents: Incidents) -> None:
        self._limit_bytes = limit_bytes
        self._write = write
        self._incidents = incidents
        self._waiting: dict[str, Unwritten] = {}  # oldest first; the one being written stays until it is published
        self._used_bytes = 0
        self._writing: Unwritten | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def offer(self, block: Unwritten) -> bool:
        """Take a block to write it later; False when it was not worth its place or the store is closed."""
        with self._changed:
            if self._is_closed:
                self._incidents.failure("write_failures", f"block {block.key.hash[:12]}", "the store is closed")
                return False
            if block.size_bytes > self._limit_bytes:
                self._count_dropped(block)
                return False
            old = self._waiting.get(block.key.hash)
            if old is not None and old is not self._writing:
                self._drop(old)
            self._waiting[block.key.hash] = block
            self._used_bytes += block.size_bytes
            self._make_room()
            if self._thread is None:
                # A process that ends without `close` loses what waits, as in a crash; it must not hang instead.
                self._thread = threading.Thread(target=self._run, name="semcache-write", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return self._waiting.get(block.key.hash) is block

    def _make_room(self) -> None:
        """Never waits for the disk: of equals the block furthest from its prompt's start goes, the older one first."""
        if self._used_bytes <= self._limit_bytes:
            return
        waiting = [block for block in self._waiting.values() if block is not self._writing]
        for block in sorted(waiting, key=lambda block: (_saved_per_byte(block), -block.key.first_token)):
            self._drop(block)
            self._count_dropped(block)
            if self._used_bytes <= self._limit_bytes:
                return

    def _count_dropped(self, block: Unwritten) -> None:
        self._incidents.failure("dropped_writes", f"block {block.key.hash[:12]}", "the write queue is full")

    def _drop(self, block: Unwritten) -> None:
        """Forget a block, unless a newer one of the same name took its place."""
        if self._waiting.get(block.key.hash) is block:
            del self._waiting[block.key.hash]
        self._used_bytes -= block.size_bytes

    def get(self, key: BlockKey) -> Stored | None:
        """What waits under exactly this key."""
        with self._changed:
            block = self._waiting.get(key.hash)
            return block.stored if block is not None and block.key == key else None

    def children(self, parent: str) -> list[BlockKey]:
        """Keys of what waits behind this block."""
        with self._changed:
            return [block.key for block in self._waiting.values() if block.key.parent == parent]

    def discard(self, concerns: Callable[[Owner], bool]) -> int:
        """Forget what waits for these owners; one that is being written is waited for. Returns how many."""
        with self._changed:
            gone = [block for block in self._waiting.values() if block is not self._writing and concerns(block.owner)]
            for block in gone:
                self._drop(block)
            self._changed.notify_all()
            writing = self._writing
            if writing is not None and concerns(writing.owner):
                self._changed.wait_for(lambda: self._writing is not writing)
        return len(gone)

    def flush(self) -> None:
        """Wait until everything that waits now is written or refused; what comes meanwhile is not waited for."""
        with self._changed:
            mine = [*self._waiting.values(), *([self._writing] if self._writing is not None else [])]
            self._changed.wait_for(lambda: not any(self._is_pending(block) for block in mine))

    def _is_pending(self, block: Unwritten) -> bool:
        return self._writing is block or self._waiting.get(block.key.hash) is block

    def close(self) -> None:
        """Write what waits, then take nothing more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def status(self) -> TierStatus:
        """Bytes and blocks that wait."""
        with self._changed:
            return TierStatus(self._used_bytes, self._limit_bytes, len(self._waiting))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                block = self._writing = next(iter(self._waiting.values()))
            try:
                self._write(block)
            except Exception as error:  # noqa: BLE001 - a thread that died would leave `flush` waiting for ever
                self._incidents.failure("write_failures", f"block {block.key.hash[:12]}", repr(error))
            finally:
                with self._changed:
                    self._writing = None
                    self._drop(block)
                    self._changed.notify_all()


def _saved_per_byte(block: Unwritten) -> float:
    return block.compute_ms / block.size_bytes
