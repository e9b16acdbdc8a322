"""The header line, the banner below it and the panels: who is asked, and what reuse is worth right now."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Container, Horizontal
from textual.content import Content
from textual.widget import Widget

from semcache.tui import panels, units
from semcache.tui.panels import Draw, Numbers
from semcache.tui.users import UsersTable
from semcache.wire.status import ModelStatus, Status

_MODEL_STATES = {
    "ready": ("●", "ready", ".exact"),
    "loading": ("◐", "loading", ".running"),
    "unloaded": ("○", "unloaded", ".faint"),
    "failed": ("✗", "failed", ".failed"),
}

# Corners, lines and spaces around words in a frame.
_FRAME = 6


class Drawn(Widget):
    """A widget whose content depends on its size; draws again only when it would look different."""

    def __init__(self, draw: Draw, *, id: str) -> None:
        super().__init__(id=id)
        self._draw = draw
        self._numbers = Numbers()
        self._drawn = Content("")

    def show(self, numbers: Numbers) -> None:
        self._numbers = numbers
        if not self._content().is_same(self._drawn):
            self.refresh()

    def _content(self) -> Content:
        return self._draw(self._numbers, self.content_size.width, self.content_size.height)

    def render(self) -> Content:
        self._drawn = self._content()
        return self._drawn


class Panel(Drawn):
    """A drawn widget in a titled frame; `foot` says one line more, in the frame below."""

    def __init__(self, title: str, draw: Draw, *, id: str, foot: Callable[[Numbers, int], str] | None = None) -> None:
        super().__init__(draw, id=id)
        self.border_title = title
        self._foot = foot

    def show(self, numbers: Numbers) -> None:
        super().show(numbers)
        self.on_resize()

    def on_resize(self) -> None:
        if self._foot is not None:
            self.border_subtitle = Content(self._foot(self._numbers, self.outer_size.width - _FRAME))


def header(numbers: Numbers, width: int, height: int) -> Content:
    """State, model and countdown at the left; where the daemon is at the right, as far as there is room."""
    status = numbers.status
    if status is None:
        return Content.assemble((" semcache", ".strong"), ("  ○ no daemon yet", ".faint"))
    model = status["model"]
    left = Content.assemble((" semcache ", ".strong"), f"{status['version']} " if width >= 110 else "", _state(status))
    facts = [f"{model['name']} {model['dtype'] or ''}".strip()]
    if model["context_tokens"] is not None:
        facts.append(f"ctx {units.count(model['context_tokens'])}")
    if model["unloads_in_s"] is not None and model["state"] == "ready":
        facts.append(f"unloads in {units.duration(model['unloads_in_s'])}")
    right = [f"up {units.duration(status['uptime_s'])}", f"pid {status['pid']}", _short_path(status["socket"])]
    line = left + Content("".join(f" · {fact}" for fact in facts))
    shown: list[str] = []
    for part in right:
        if line.cell_length + sum(len(p) + 3 for p in [*shown, part]) < width:
            shown.insert(0, part)
    tail = " · ".join(shown)
    blank = max(1, width - line.cell_length - len(tail) - 1)
    return line + Content.styled(" " * blank + tail, ".faint")


def _state(status: Status) -> Content:
    if status["state"] in ("starting", "draining"):
        return Content.styled(f"◌ {status['state']}", ".running")
    glyph, word, style = _MODEL_STATES.get(status["model"]["state"], ("?", status["model"]["state"], ".faint"))
    return Content.styled(f"{glyph} {word}{_progress(status['model'])}", style)


def _progress(model: ModelStatus) -> str:
    if model["state"] != "loading":
        return ""
    stage = f" {model['stage']}" if model["stage"] else ""
    return stage + (f" {model['progress'] * 100:.0f} %" if model["progress"] is not None else "")


def _short_path(path: str) -> str:
    return f"unix:{path}" if len(path) <= 24 else f"unix:…{path[-22:]}"


class Header(Drawn):
    def __init__(self) -> None:
        super().__init__(header, id="header")


class Overview(Container):
    """All panels; `app.tcss` decides which of them a terminal has room for."""

    def compose(self) -> ComposeResult:
        with Horizontal(id="upper"):
            yield Panel("Outcomes · since daemon start", panels.outcomes, id="outcomes", foot=panels.trust)
            with Container(id="side"):
                yield Panel("Cache", panels.tiers, id="tiers")
                yield Panel("Saved · all time", panels.saved, id="saved")
        with Horizontal(id="lower"):
            yield Panel("Throughput", panels.throughput, id="throughput")
            yield UsersTable()

    def show(self, numbers: Numbers) -> None:
        for panel in self.query(Panel):
            panel.show(numbers)
        if numbers.stats is not None:
            self.query_one(UsersTable).show_users(numbers.stats)
