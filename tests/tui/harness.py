"""The app on a fixed source, a fixed clock, a fixed time zone and a fixed terminal."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from textual import events
from textual.pilot import Pilot
from textual.widgets import Input

from semcache.tui.app import TopApp
from tests.tui.fixed_source import NOW, FixedSource

SNAPSHOTS = Path(__file__).parent / "__snapshots__"
UPDATE = os.environ.get("SEMCACHE_UPDATE_SNAPSHOTS") == "1"
WIDE, NARROW = (120, 32), (80, 24)


def text_grid(app: TopApp) -> str:
    """What the screen shows, one line of text per line."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips) + "\n"


class Top:
    """A running app, its pilot and its source."""

    def __init__(self, app: TopApp, pilot: Pilot[None], source: FixedSource) -> None:
        self.app = app
        self.pilot = pilot
        self.source = source

    @property
    def text(self) -> str:
        return text_grid(self.app)

    async def until(self, *shown: str, condition: Callable[[], bool] = lambda: True) -> None:
        """Wait until every text is on the screen and the condition holds."""
        deadline = asyncio.get_running_loop().time() + 20
        while not (condition() and all(text in grid for grid in [self.text if shown else ""] for text in shown)):
            assert asyncio.get_running_loop().time() < deadline, f"never shown: {shown}\n{self.text}"
            await self.pilot.pause(0.01)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def type_ahead(self, *keys: str) -> None:
        """All keys at once, as a terminal hands over what was typed while the app was busy."""
        for key in keys:
            self.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await self.pilot.pause()

    async def poll(self) -> None:
        before = self.source.num_polls
        await self.press("R")
        await self.until(condition=lambda: self.source.num_polls > before)
        await self.pilot.pause()

    def row(self, text: str) -> str:
        """The one line that shows this text."""
        (line,) = [line for line in self.text.splitlines() if text in line]
        return line

    async def matches_snapshot(self, name: str) -> None:
        """Wait until the screen is what the file says; with UPDATE, until it stands still, and write the file."""
        path = SNAPSHOTS / f"{name}.txt"
        if UPDATE:
            seen = [""]
            while seen[-5:] != [self.text] * 5:
                seen.append(self.text)
                await self.pilot.pause(0.02)
            path.write_text(self.text, encoding="utf-8")
        expected = path.read_text(encoding="utf-8")
        try:
            await self.until(condition=lambda: self.text == expected)
        except AssertionError:
            assert self.text == expected, "set SEMCACHE_UPDATE_SNAPSHOTS=1 if this is meant"


@asynccontextmanager
async def running_top(
    source: FixedSource | None = None, *, size: tuple[int, int] = WIDE, readonly: bool = False
) -> AsyncIterator[Top]:
    """The app after its first poll; further polls come only from `R`."""
    source = source or FixedSource()
    app = TopApp(source, interval_s=60, readonly=readonly, clock=lambda: NOW)
    async with app.run_test(size=size, notifications=True) as pilot:
        for field in app.screen.query(Input):
            field.cursor_blink = False
        top = Top(app, pilot, source)
        await top.until(condition=lambda: app.has_heard or (source.error is not None and source.num_polls > 0))
        await pilot.pause()
        yield top
