"""Whether a folder can be a data directory, and who owns it. One process at a time, on a local disk."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from semcache.errors import StoreError
from semcache.store.database import LastRun

LOCK_NAME = "store.lock"
_DAMAGED = b"damaged\n"  # in the lock file instead of a process id
NETWORK_FILESYSTEMS = (
    "nfs", "cifs", "smb", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.glusterfs", "fuse.ceph",
    "ceph", "lustre", "gpfs", "beegfs", "orangefs", "afs", "glusterfs", "davfs", "fuse.davfs",
)  # fmt: skip


def filesystem_type(path: Path, mounts: str) -> str:
    """The type of the file system that holds `path`, from the text of /proc/mounts; empty when unknown."""
    best, kind = "", ""
    for line in mounts.splitlines():
        columns = line.split()
        if len(columns) < 3:
            continue
        # The kernel writes blanks in paths as octal escapes.
        point = columns[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        holds = point == "/" or str(path) == point or str(path).startswith(point + "/")
        if holds and len(point) >= len(best):  # of two mounts on one point the later one is on top
            best, kind = point, columns[2]
    return kind


def refuse_network(path: Path, mounts: str) -> None:
    """SQLite's locks and the write-ahead log are not safe over a network."""
    kind = filesystem_type(path, mounts)
    if kind.startswith(NETWORK_FILESYSTEMS):
        raise StoreError(
            f"{path} is on a network filesystem ({kind}), where a SQLite database can be damaged; "
            "set SEMCACHE_HOME to a folder on a local disk"
        )


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not Linux: nothing to ask


class DataDir:
    """A private folder that this process owns until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_run: LastRun = "clean"
        self._fd = -1
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_network(path.resolve(), _mounts())
            self._fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"cannot use data folder {path}: {error.strerror}; fix its permissions or set SEMCACHE_HOME"
            ) from error
        self._take()

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreError(
                f"{self.path} is in use by another semcache daemon (pid {pid}); "
                "stop it with `semcache daemon stop` or set SEMCACHE_HOME to another folder"
            ) from error
        try:
            left = os.pread(self._fd, len(_DAMAGED) + 1, 0)
            self.last_run = "clean" if not left else "damaged" if left == _DAMAGED else "killed"
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(self._fd)
            raise StoreError(
                f"cannot write {self.path / LOCK_NAME}: {error.strerror}; free some space or set SEMCACHE_HOME"
            ) from error

    def release(self, state: LastRun) -> None:
        """Give up ownership and leave word for the next owner, who looks at the database the more closely."""
        if self._fd < 0:
            return
        if state != "killed":
            os.ftruncate(self._fd, 0)
        if state == "damaged":
            os.pwrite(self._fd, _DAMAGED, 0)
        os.close(self._fd)
        self._fd = -1
