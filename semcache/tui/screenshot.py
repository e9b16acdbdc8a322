"""A picture of `top` without a terminal: `python -m semcache.tui.screenshot [--socket PATH] OUT.svg`."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from semcache.client import Client
from semcache.tui.app import TopApp
from semcache.tui.feed import Source

_MAX_PAUSES = 200


async def save_screenshot(
    path: Path, source: Source, *, size: tuple[int, int] = (120, 32), theme: str | None = None
) -> None:
    """Run the real app headless until it has shown its first numbers, and write what it looks like as SVG."""
    app = TopApp(source)
    async with app.run_test(size=size) as pilot:
        if theme is not None:
            app.theme = theme
        before, shown = "", ""
        for _ in range(_MAX_PAUSES):
            await pilot.pause(0.05)
            before, shown = shown, app.export_screenshot(title="semcache top")
            if app.has_heard and shown == before:  # a busy machine draws the numbers a moment after they came
                break
        app.save_screenshot(path.name, path=str(path.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--size", default="120x32", help="columns x lines")
    parser.add_argument("--theme")
    options = parser.parse_args()
    columns, lines = (int(part) for part in options.size.split("x"))

    async def run() -> None:
        async with Client(socket=options.socket, url=options.url) as client:
            await client.status()  # an unreachable daemon is an error here, not an empty picture
            await save_screenshot(options.out, client, size=(columns, lines), theme=options.theme)

    asyncio.run(run())


if __name__ == "__main__":
    main()
