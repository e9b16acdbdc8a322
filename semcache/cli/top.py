"""`semcache top`: the live view; textual is imported only when it opens."""

from __future__ import annotations

from typing import Annotated

import typer

from semcache.cli.options import Options, command


def register(app: typer.Typer) -> None:
    command(app, "top", panel="Use")(top)


def top(
    options: Options,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two pictures.", min=0.1)] = 1.0,
    readonly: Annotated[bool, typer.Option("--readonly", help="Keys that change anything do nothing.")] = False,
) -> int:
    """Live view of daemon, model, cache and requests. Never starts the daemon.

    Without a terminal on stdin, stdout and stderr it prints one picture, as with --once.
    """
    import os

    from semcache.cli.connect import paths_of
    from semcache.tui.app import run_top

    socket = None if options.url else paths_of(options).socket
    return run_top(
        socket=socket, url=options.url, once=once, as_json=options.json, interval_s=interval, readonly=readonly,
        token=os.environ.get("SEMCACHE_TOKEN"),
    )  # fmt: skip
