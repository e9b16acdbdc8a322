"""`semcache doctor`: is everything in place? Starts nothing, changes nothing."""

from __future__ import annotations

import typer

from semcache.cli import render
from semcache.cli.options import Options, command

MARKS = {"ok": ("✔", render.GREEN), "warn": ("!", render.YELLOW), "fail": ("✘", render.RED)}


def register(app: typer.Typer) -> None:
    command(app, "doctor", panel="Setup")(doctor)


def doctor(options: Options) -> int:
    """Check versions, folders, disk, memory, torch, model, embedder and daemon; exit 1 when something is broken."""
    import sys

    from semcache.cli.checks import every_check

    checks = []
    for check in every_check(options):
        checks.append(check)
        if not options.json:
            mark, style = MARKS[check.status]
            render.out(f"{render.paint(mark, style, sys.stdout)} {check.id}: {check.detail}")
            if check.fix:
                render.out(f"  fix: {check.fix}")
            sys.stdout.flush()
    if options.json:
        render.out_json(
            {"checks": [{"id": c.id, "status": c.status, "detail": c.detail, "fix": c.fix} for c in checks]}
        )
    return 1 if any(check.status == "fail" for check in checks) else 0
