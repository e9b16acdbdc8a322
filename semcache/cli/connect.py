"""From global options to an open client of a running daemon.

Truth is `connect()`: a process id or a lock file says nothing about whether somebody answers. Starting the daemon
is `cli/start.py`; this file decides whether it may be started and waits until it can serve.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from semcache import errors
from semcache.cli.options import Options
from semcache.client import Client
from semcache.config import Config
from semcache.paths import Paths, check_socket_path

T = TypeVar("T")

# How long a command waits for a model that is loading before it gives up with exit code 4.
READY_TIMEOUT_S = 1800.0
READY_POLL_S = 2.0
# The daemon ends a request at daemon.request_timeout_s; we give up a little later, to hear its reason.
TIMEOUT_MARGIN_S = 30.0
DRAIN_TIMEOUT_S = 60.0
MAX_ATTEMPTS = 4


@asynccontextmanager
async def connected(options: Options, *, start: bool = True, model: bool = False) -> AsyncIterator[Client]:
    """An open client; where nothing answers on our own socket, and it is allowed, a daemon is started first.

    `model`: the command is of no use before the model is loaded, so a start includes that.
    """
    async with open_client(options) as client:
        if start:
            await ensure_running(options, model=model)
        yield client


def fetch(options: Options, call: Callable[[Client], Awaitable[T]], *, start: bool = True, retries: bool = False) -> T:
    """What `call` gets from an open client, on an event loop of its own; with `retries` as `with_retries` says."""

    async def run() -> T:
        async with connected(options, start=start) as client:
            if retries:
                return await with_retries(options, client, lambda: call(client))
            return await call(client)

    return asyncio.run(run())


def fetch_each(
    options: Options, ids: Iterable[str], call: Callable[[Client, str], Awaitable[T]]
) -> tuple[list[T], list[str]]:
    """What `call` gets for every id, each once, and the ids that name nothing; any other refusal ends it."""

    async def run(client: Client) -> tuple[list[T], list[str]]:
        done, missing = list[T](), list[str]()
        for one in dict.fromkeys(ids):
            try:
                done.append(await call(client, one))
            except errors.NotFoundError:
                missing.append(one)
        return done, missing

    return fetch(options, run)


def open_client(options: Options) -> Client:
    """A client that has not connected yet."""
    _import_httpx()
    if options.url:
        return Client(url=options.url, token=os.environ.get("SEMCACHE_TOKEN"))
    paths = paths_of(options)
    config = Config.load(paths.config_file)
    return Client(socket=paths.socket, timeout_s=config.daemon.request_timeout_s + TIMEOUT_MARGIN_S)


def _import_httpx() -> None:
    """`import httpx` also loads its own command line (click, rich, pygments), which is more than half of its cost.

    A name that is None in `sys.modules` cannot be imported, and httpx goes on without that part.
    """
    if "httpx" not in sys.modules:
        sys.modules["httpx._main"] = None  # type: ignore[assignment]
        importlib.import_module("httpx")
        del sys.modules["httpx._main"]


def paths_of(options: Options) -> Paths:
    """Where things live, the socket checked before anything is done with it."""
    paths = Paths.resolve(socket=options.socket.expanduser().absolute() if options.socket else None)
    check_socket_path(paths.socket)
    return paths


def answers(path: Path) -> bool:
    """Whether a process accepts connections on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


async def ensure_running(options: Options, *, model: bool) -> None:
    """Start the daemon where that is allowed and nothing answers."""
    if options.url or not options.autostart:
        return
    paths = paths_of(options)
    if not answers(paths.socket):
        from semcache.cli.start import start_daemon

        socket_option = ["--socket", str(paths.socket)] if options.socket else []
        await start_daemon(paths, options, arguments=["--autostarted", *socket_option], until_ready=model)


async def with_retries(options: Options, client: Client, call: Callable[[], Awaitable[T]]) -> T:
    """`call()`, again when the daemon was loading, draining, or gone when it was tried.

    The optimistic order saves a round trip for every request to a daemon that is ready.
    """
    for attempt in range(MAX_ATTEMPTS):
        try:
            return await call()
        except errors.UnavailableError:
            if attempt == MAX_ATTEMPTS - 1:
                raise
            await wait_ready(options, client)
    raise AssertionError("unreachable")


async def wait_ready(options: Options, client: Client, *, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Wait for the model, showing how far it is; a draining daemon is waited out and replaced."""
    from semcache.cli.progress import Progress

    deadline = time.monotonic() + timeout_s
    with Progress(options) as progress:
        while True:
            asked = time.monotonic()
            try:
                await client.ready(READY_POLL_S)
                return
            except errors.UnavailableError as error:
                reason = error.message
            except errors.DaemonUnreachableError:
                if options.url or not options.autostart:
                    raise
                await ensure_running(options, model=True)
                continue
            progress.show(reason)
            if time.monotonic() > deadline:
                raise errors.RequestTimeoutError(f"the model was not ready after {timeout_s:g} s: {reason}")
            if time.monotonic() - asked < READY_POLL_S / 2:
                await _pause(options, client)


async def _pause(options: Options, client: Client) -> None:
    """The daemon did not hold the poll: it drains, so wait for its end; otherwise do not hammer it."""
    status = await client.status()
    if status["state"] == "draining" and not options.url:
        from semcache.cli.process import wait_gone

        await wait_gone(status["pid"], DRAIN_TIMEOUT_S)
        await ensure_running(options, model=True)
    else:
        await asyncio.sleep(READY_POLL_S / 4)
