"""Start the daemon as its own process and wait until it says that it is ready.

The daemon reports its phases as JSON lines on an inherited pipe, so nothing here sleeps and looks again. Starters
queue at `start.lock`; whoever comes second finds a daemon that answers and simply connects.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

from semcache import errors
from semcache.cli import render
from semcache.cli.connect import answers
from semcache.cli.options import Options
from semcache.cli.process import wait_gone
from semcache.cli.progress import Progress
from semcache.paths import Paths, make_private_dir

DAEMON = (sys.executable, "-m", "semcache.daemon")
LOG_TAIL_LINES = 10
# A daemon that closed its pipe is about to end; its status is worth this long a wait.
EXIT_GRACE_S = 2.0


async def start_daemon(
    paths: Paths,
    options: Options,
    *,
    arguments: Sequence[str],
    command: Sequence[str] = DAEMON,
    until_ready: bool = True,
) -> None:
    """Return when a daemon serves on our socket: the one started here, or the one that was faster.

    `until_ready`: wait for the model too, and fail when it cannot be loaded.
    """
    make_private_dir(paths.runtime_dir)
    make_private_dir(paths.log_file.parent)
    with Progress(options) as progress:
        async with _start_lock(paths.runtime_dir / "start.lock"):
            if answers(paths.socket):
                return
            progress.show("starting the daemon…")
            log_start = paths.log_file.stat().st_size if paths.log_file.exists() else 0
            process, descriptor = _spawn(paths, [*command, *arguments])
            async with _reading(descriptor) as pipe:
                first = await _follow(pipe, progress, until={"listening", "ready", "error"})
                last = first
                if until_ready and first.get("phase") == "listening":
                    last = await _follow(pipe, progress, until={"ready", "error"})
    if last.get("phase") in {"ready", "listening"}:
        process.returncode = 0  # it outlives this command, and Popen must not warn about that
        return
    if first.get("phase") != "listening" and answers(paths.socket):
        process.wait()  # ours made way for a daemon that was started in another manner
        return
    await _fail(process, last, paths.log_file, log_start)


def _spawn(paths: Paths, command: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the pipe on which it reports."""
    ready, report = os.pipe()
    arguments = [*command, "--ready-fd", str(report)]
    try:
        with paths.log_file.open("ab") as log:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(report,),
                start_new_session=True,
            )
    except OSError as error:
        os.close(ready)
        raise errors.DaemonUnreachableError(f"cannot start {' '.join(arguments)}: {error}") from error
    finally:
        os.close(report)
    return process, ready


@asynccontextmanager
async def _reading(descriptor: int) -> AsyncIterator[asyncio.StreamReader]:
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(descriptor, "rb", buffering=0))
    try:
        yield reader
    finally:
        transport.close()


async def _follow(pipe: asyncio.StreamReader, progress: Progress, *, until: set[str]) -> dict[str, Any]:
    """Show phases until one of `until`; empty when the daemon closed the pipe before."""
    async for line in pipe:
        try:
            phase = json.loads(line)
        except ValueError:
            continue
        if phase.get("phase") in until:
            return cast("dict[str, Any]", phase)
        fraction = phase.get("progress")
        share = f" {fraction:.0%}" if fraction is not None else ""
        progress.show(f"{phase.get('stage') or phase.get('phase', 'starting')}{share}", fraction)
    return {}


async def _fail(process: subprocess.Popen[bytes], phase: Mapping[str, Any], log_file: Path, log_start: int) -> NoReturn:
    """Raise what the daemon reported, or what its log says about its end."""
    if phase.get("phase") == "error":
        process.returncode = 0  # it may live on to answer with this error; Popen must not warn about that
        raise errors.from_code(str(phase.get("code")), str(phase.get("message")))
    ended = await wait_gone(process.pid, EXIT_GRACE_S)
    code = process.poll() if ended else None
    process.returncode = code or 0
    for line in _tail(log_file, log_start):
        render.warn(f"  {line}", style=render.DIM)
    how = f"ended with status {code}" if ended else "stopped reporting before it was ready"
    raise errors.DaemonUnreachableError(f"the daemon {how}; its log is {log_file}")


def _tail(log_file: Path, start: int) -> list[str]:
    with log_file.open("rb") as log:
        log.seek(start)
        return log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]


@asynccontextmanager
async def _start_lock(path: Path) -> AsyncIterator[None]:
    with path.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await _blocking_lock(handle.fileno())
        yield


async def _blocking_lock(descriptor: int) -> None:
    """Wait for the lock in a daemon thread: an executor would keep Ctrl-C from ending the command."""
    loop = asyncio.get_running_loop()
    taken: asyncio.Future[None] = loop.create_future()

    def wait() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        loop.call_soon_threadsafe(lambda: None if taken.done() else taken.set_result(None))

    threading.Thread(target=wait, daemon=True).start()
    await taken
