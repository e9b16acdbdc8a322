"""Memory for the first files that are read after a start, made before anybody waits for it.

The kernel gives memory out page by page, at the first write to each: a read that is the first to write takes many times
as long as the same read into memory that was written to. Later reads mostly get memory that the process had before.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

READY_BYTES = 64 << 20  # about one long prompt of a small model
_PAGE_BYTES = 4096


class Buffers:
    """Buffers of the sizes that are expected, each given out once. Thread-safe."""

    def __init__(self) -> None:
        self._ready: defaultdict[int, list[memoryview]] = defaultdict(list)
        self._is_closed = False
        self._lock = threading.Lock()

    def prepare(self, sizes_bytes: Sequence[int]) -> None:
        """Make a buffer of each size and have the kernel give its memory out."""
        for size_bytes in sizes_bytes:
            buffer = _allocated(size_bytes)
            np.frombuffer(buffer, dtype=np.uint8)[::_PAGE_BYTES] = 0  # without the interpreter's lock
            with self._lock:
                if self._is_closed:
                    return
                self._ready[size_bytes].append(buffer)

    def take(self, size_bytes: int) -> memoryview:
        """A buffer that nobody else has; its content is undefined."""
        with self._lock:
            ready = self._ready.get(size_bytes)
            if ready:
                return ready.pop()
        return _allocated(size_bytes)

    @property
    def ready_bytes(self) -> int:
        with self._lock:
            return sum(size_bytes * len(ready) for size_bytes, ready in self._ready.items())

    def close(self) -> None:
        """Let go what is ready, and make no more."""
        with self._lock:
            self._is_closed = True
            self._ready.clear()


def _allocated(size_bytes: int) -> memoryview:
    """Memory with any content: zeroing a bytearray holds the interpreter's lock, and with it the model's thread."""
    return np.empty(size_bytes, np.uint8).data
