"""Every file-system call that writes, in one place, so that a test can make each of them fail.

A write is two steps: `write_temp` does the slow part without any lock, `publish` gives the file its name. A file that
was never published is garbage by its suffix.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from semcache.store.buffers import Buffers

TEMP_SUFFIX = ".tmp"


class WrongFileError(Exception):
    """What lies there is not a file of the size that was asked for; the message says what it is."""


class Files:
    """The real file system. Every method may raise OSError."""

    def __init__(self) -> None:
        self._serial = itertools.count()
        self._open_temps: set[Path] = set()
        self._lock = threading.Lock()
        self.buffers = Buffers()

    def write_temp(self, path: Path, pieces: Sequence[bytes | memoryview], *, durable: bool) -> Path:
        """Write the pieces beside `path`, one behind the other, under a temporary name; removes it when that fails."""
        temp = path.with_name(f"{path.name}.{os.getpid()}-{next(self._serial)}{TEMP_SUFFIX}")
        with self._lock:
            self._open_temps.add(temp)
        try:
            try:
                self._write(temp, pieces, durable=durable)
            except FileNotFoundError:
                _make_private(path.parent)
                self._write(temp, pieces, durable=durable)
        except BaseException:
            self.discard_temp(temp)
            raise
        return temp

    def _write(self, path: Path, pieces: Sequence[bytes | memoryview], *, durable: bool) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:  # one write() moves at most 2 GiB and may stop short when the disk is nearly full
                    view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)

    def publish(self, temp: Path, path: Path, *, durable: bool) -> None:
        """Give a temporary file its final name, replacing what was there."""
        try:
            os.replace(temp, path)
        except IsADirectoryError:
            path.rmdir()
            os.replace(temp, path)
        with self._lock:
            self._open_temps.discard(temp)
        if durable:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard_temp(self, temp: Path) -> None:
        """Remove a temporary file that will not be published; what cannot be removed is swept at the next start."""
        with suppress(OSError):
            os.unlink(temp)
        with self._lock:  # not before: until it is gone it is no leftover
            self._open_temps.discard(temp)

    def is_open_temp(self, path: Path) -> bool:
        """Whether a write of this process is still busy with `path`, so that it is no leftover."""
        with self._lock:
            return path in self._open_temps

    def read(self, path: Path, size_bytes: int) -> memoryview:
        """The whole file, not mapped: a mapped file that is truncated later kills the process.

        WrongFileError before anything is read or allocated unless it is a plain file of this size.
        """
        # Without O_NONBLOCK opening a named pipe waits until somebody writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise WrongFileError("is no plain file")
            if found.st_size != size_bytes:
                raise WrongFileError(f"has {found.st_size} bytes, its row says {size_bytes}")
            content = self.buffers.take(size_bytes)
            num_bytes = 0
            while num_bytes < len(content) and (num_read := os.readv(fd, [content[num_bytes:]])):
                num_bytes += num_read
        finally:
            os.close(fd)
        if num_bytes < len(content):
            raise WrongFileError(f"was cut to {num_bytes} bytes while it was read")
        return content

    def unlink(self, path: Path) -> None:
        """Remove a file, or an empty folder in its place; one that is already gone is fine."""
        try:
            path.unlink(missing_ok=True)
        except IsADirectoryError:
            path.rmdir()


def _make_private(folder: Path) -> None:
    """Create a folder and its parents, each 0700 (`mkdir(parents=True)` gives the mode to the last one only)."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
