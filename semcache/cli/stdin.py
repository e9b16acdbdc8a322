"""Piped input of `ask`: read where somebody sends, left alone where a pipe is only inherited.

A CI runner or a parent process often leaves an open pipe on stdin that nobody writes to; reading it to the end would
wait for ever. A shell pipeline may be slow to send its first byte; giving up on it would ask the wrong question. Both
look the same to `select`, so a silent pipe is read only when a process other than our ancestors can write to it.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from pathlib import Path

from semcache.errors import UsageError

# Whoever has data ready has sent it by the time the interpreter has started; this is slack on top.
FIRST_BYTE_S = 0.2


def piped_text(*, wait: bool = False) -> str:
    """All of stdin; empty on a terminal, when closed, or from a pipe nobody sends into. `wait`: read regardless."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # closed under us, or replaced by something without a descriptor
        return ""
    silent_pipe = (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) and not _readable(descriptor)
    if silent_pipe and not wait and not _has_other_writer(descriptor):
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read standard input: {error.strerror}") from error


def _readable(descriptor: int) -> bool:
    """Whether a byte or the end is there."""
    ready, _, _ = select.select([descriptor], [], [], FIRST_BYTE_S)
    return bool(ready)


def _has_other_writer(descriptor: int) -> bool:
    """Whether a process that is not our ancestor holds the other end. True where /proc cannot tell."""
    proc = Path("/proc")
    try:
        pipe = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return True
    ancestors = _ancestors()
    for process in proc.iterdir():
        if not process.name.isdigit() or int(process.name) in ancestors:
            continue
        try:
            if any(os.readlink(link) == pipe and _writes(process, link.name) for link in (process / "fd").iterdir()):
                return True
        except OSError:  # ended meanwhile, or not ours to look at
            continue
    return False


def _writes(process: Path, descriptor: str) -> bool:
    flags = next(
        line for line in (process / "fdinfo" / descriptor).read_text().splitlines() if line.startswith("flags:")
    )
    return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY


def _ancestors() -> set[int]:
    """This process and all above it."""
    found, pid = {os.getpid()}, os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            # The name in parentheses may hold anything; the parent id is the second field after it.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found
