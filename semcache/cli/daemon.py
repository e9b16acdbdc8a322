"""`semcache daemon`: start, stop, look, run in the foreground. It starts a process and never imports the daemon."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from semcache import errors
from semcache.cli import render
from semcache.cli.options import Options, command, group

if TYPE_CHECKING:
    from semcache.paths import Paths
    from semcache.wire.status import Status

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: KEY=VALUE (repeatable).", metavar="KEY=VALUE")
]
Timeout = Annotated[float, typer.Option(help="Seconds for running requests to finish.", min=0)]
Force = Annotated[bool, typer.Option("--force", help="Kill it when it does not end in time.")]

# What ending takes beyond the drain: flush, unload, close.
STOP_MARGIN_S = 15.0


def register(app: typer.Typer) -> None:
    daemon = group("Start, stop and look at the background process.")
    command(daemon, "start")(start)
    command(daemon, "stop")(stop)
    command(daemon, "restart")(restart)
    command(daemon, "status")(status)
    command(daemon, "run")(run)
    app.add_typer(daemon, name="daemon", rich_help_panel="Runtime")


def start(options: Options, settings: Settings = None) -> int:
    """Start the daemon and wait until it is ready; one that runs already is fine."""
    import asyncio

    found = asyncio.run(_start(_local(options), options, settings or []))
    if options.json:
        render.out_json(found)
    else:
        render.note(options, f"the daemon is {found['state']}: pid {found['pid']}, {found['socket']}")
    return 0


def stop(options: Options, timeout: Timeout = 30.0, force: Force = False) -> int:
    """Let running requests finish, then end the daemon; returns when its process is gone."""
    import asyncio

    stopped = asyncio.run(_stop(options, timeout, force=force))
    if options.json:
        render.out_json({"stopped": stopped})
    else:
        render.note(options, "the daemon has ended" if stopped else "no daemon runs")
    return 0


def restart(options: Options, timeout: Timeout = 30.0, force: Force = False, settings: Settings = None) -> int:
    """Stop the daemon if one runs, and start it with the settings of now."""
    import asyncio

    async def again() -> Status:
        await _stop(options, timeout, force=force)
        return await _start(_local(options), options, settings or [])

    found = asyncio.run(again())
    if options.json:
        render.out_json(found)
    else:
        render.note(options, f"the daemon is {found['state']}: pid {found['pid']}, {found['socket']}")
    return 0


def status(options: Options) -> int:
    """What the daemon is doing; exit 3 when none runs."""
    from semcache.cli.connect import answers, fetch, paths_of
    from semcache.cli.process import is_locked
    from semcache.cli.stats import status_rows

    if not options.url:
        paths = paths_of(options)
        if not answers(paths.socket):
            state = "starting" if is_locked(paths.lock_file) else "stopped"
            if options.json:
                render.out_json({"state": state, "socket": str(paths.socket)})
            else:
                render.out(f"DAEMON  {state} · unix:{paths.socket}")
            return 3

    found = fetch(options, lambda client: client.status(), start=False)
    if options.json:
        render.out_json(found)
    else:
        render.pairs(status_rows(found))
    return 0


def run(options: Options, settings: Settings = None) -> int:
    """Run the daemon in the foreground, for systemd, containers and debugging."""
    paths = _local(options)
    arguments = [sys.executable, "-m", "semcache.daemon", *_daemon_arguments(options, paths, settings or [])]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 - it takes our place, so signals reach it


def _local(options: Options) -> Paths:
    from semcache.cli.connect import paths_of

    if options.url:
        raise errors.UsageError("--url names a daemon that cannot be started from here; leave it out", param="url")
    return paths_of(options)


def _daemon_arguments(options: Options, paths: Paths, settings: list[str]) -> list[str]:
    arguments = ["--socket", str(paths.socket)] if options.socket else []
    return arguments + [word for setting in settings for word in ("--set", setting)]


async def _start(paths: Paths, options: Options, settings: list[str]) -> Status:
    from semcache.cli.connect import answers, open_client, wait_ready
    from semcache.cli.start import start_daemon

    if answers(paths.socket):
        if settings:
            render.note(options, "a daemon runs already, --set changes nothing; use `semcache daemon restart`")
    else:
        await start_daemon(paths, options, arguments=_daemon_arguments(options, paths, settings))
    async with open_client(options) as client:
        await wait_ready(options, client)
        return await client.status()


async def _stop(options: Options, timeout_s: float, *, force: bool) -> bool:
    """Whether there was a daemon to stop."""
    import signal

    from semcache.cli.connect import open_client
    from semcache.cli.process import locked_pid, send, wait_gone

    async with open_client(options) as client:
        try:
            pid = (await client.status())["pid"]
            await client.shutdown(timeout_s)
        except (errors.DaemonUnreachableError, errors.RequestTimeoutError, errors.ProtocolError):
            # Not listening yet, not answering any more, or too old to be asked: only a signal reaches it.
            if options.url:
                raise
            found = locked_pid(_local(options))
            if found is None:
                return False
            pid = found
            send(pid, signal.SIGTERM)
    if options.url:
        return True
    if await wait_gone(pid, timeout_s + STOP_MARGIN_S):
        return True
    if not force:
        raise errors.RequestTimeoutError(
            f"the daemon (pid {pid}) did not end within {timeout_s:g} s; add --force to kill it"
        )
    send(pid, signal.SIGKILL)
    await wait_gone(pid, STOP_MARGIN_S)
    return True
