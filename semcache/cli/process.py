"""Processes and locks of this machine, without polling: who holds the daemon lock, and when a process is gone."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from pathlib import Path

from semcache.paths import Paths


def is_locked(lock_file: Path) -> bool:
    """Whether a living process holds the daemon lock."""
    try:
        handle = lock_file.open("rb")
    except OSError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def locked_pid(paths: Paths) -> int | None:
    """The daemon's process id, if its lock is held: the holder writes it into the lock file."""
    if not is_locked(paths.lock_file):
        return None
    try:
        return int(paths.lock_file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


async def wait_gone(pid: int, timeout_s: float) -> bool:
    """Whether the process ended within the time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):  # not Linux, or a kernel that refuses: look now and then
        return await _poll_gone(pid, timeout_s)
    try:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            await asyncio.wait_for(gone.wait(), timeout_s)
        finally:
            loop.remove_reader(descriptor)
    except TimeoutError:
        return False
    finally:
        os.close(descriptor)
    return True


async def _poll_gone(pid: int, timeout_s: float) -> bool:
    for _ in range(max(1, int(timeout_s / 0.1))):
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        await asyncio.sleep(0.1)
    return False


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process; one that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
