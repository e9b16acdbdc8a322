"""`semcache logs`: the end of the daemon's log, and what follows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from semcache import errors
from semcache.cli import render
from semcache.cli.options import Options, command

FOLLOW_INTERVAL_S = 0.25
BLOCK_BYTES = 64 * 1024


def register(app: typer.Typer) -> None:
    command(app, "logs", panel="Runtime")(logs)


def logs(
    options: Options,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many lines from the end.", min=0)] = 50,
) -> int:
    """Print the daemon's log."""
    from semcache.cli.connect import paths_of

    if options.url:
        raise errors.UsageError("logs reads the log file of this machine; leave out --url", param="url")
    path = paths_of(options).log_file
    if not path.exists() and not follow:
        raise errors.NotFoundError(f"no log yet at {path}; the daemon has not been started with this home")
    position = _print_tail(options, path, lines)
    while follow:
        time.sleep(FOLLOW_INTERVAL_S)
        position = _print_new(options, path, position)
    return 0


def _print_tail(options: Options, path: Path, num_lines: int) -> int:
    """Print the last lines; returns where the file ended."""
    if not path.exists():
        return 0
    with path.open("rb") as log:
        end = start = log.seek(0, 2)
        tail = b""
        while start > 0 and tail.count(b"\n") <= num_lines:
            step = min(BLOCK_BYTES, start)
            start -= step
            log.seek(start)
            tail = log.read(step) + tail
    shown = tail.decode(errors="replace").splitlines()
    for line in shown[len(shown) - min(num_lines, len(shown)) :]:
        _print_line(options, line)
    return end


def _print_new(options: Options, path: Path, position: int) -> int:
    """Print whole lines after `position`; a file that became shorter was rotated and is read anew."""
    try:
        with path.open("rb") as log:
            if log.seek(0, 2) < position:
                position = 0
            log.seek(position)
            new = log.read()
    except FileNotFoundError:
        return 0
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        _print_line(options, line)
    return position + len(whole)


def _print_line(options: Options, line: str) -> None:
    render.out(json.dumps({"line": line}) if options.json else line)
    import sys

    sys.stdout.flush()
