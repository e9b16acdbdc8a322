"""`semcache top`: starts the feed, keeps the newest numbers and hands them to the screens."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import App
from textual.binding import Binding, BindingType

from semcache.client import Client
from semcache.errors import DaemonUnreachableError
from semcache.tui.detail import DetailScreen
from semcache.tui.feed import Feed, ModelChanged, RequestsChanged, Snapshot, Source, SourceLost
from semcache.tui.help import HelpScreen
from semcache.tui.live_table import LiveTable
from semcache.tui.marking import MarkAsked, Marking
from semcache.tui.once import print_once
from semcache.tui.panels import Numbers
from semcache.tui.request_log import RequestLog, created_at
from semcache.tui.top_screen import TopScreen
from semcache.wire.protocol import OUTCOMES
from semcache.wire.receipts import AskReceipt
from semcache.wire.status import Status
from semcache.wording import suspended_words

MAX_RATES = 512
NOT_RUNNING = "daemon not running — start it with `semcache daemon start`"


def now_utc() -> datetime:
    return datetime.now(UTC)


class TopApp(App[None]):
    """One source of numbers, one screen of them. With `readonly` nothing can be asked or changed."""

    CSS_PATH = "app.tcss"
    TITLE = "semcache top"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "help", "Help", key_display="?", id="app.help"),
        Binding("q", "quit", "Quit", id="app.quit"),
        Binding("R", "poll_now", "Refresh now", show=False, id="app.poll_now"),
        Binding("ctrl+s", "save_svg", "Save a screenshot (SVG) here", show=False, id="app.save_svg"),
        Binding("ctrl+p", "command_palette", "Commands and themes", show=False, id="app.palette"),
    ]

    def __init__(
        self,
        source: Source,
        *,
        interval_s: float = 1.0,
        readonly: bool = False,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        super().__init__()
        self._requests = RequestLog()
        self._top = TopScreen(self._requests, None if readonly else source)
        self._source = source
        self._readonly = readonly
        self._marking = Marking(self, source)
        self._feed = Feed(source, self.post_message, interval_s=interval_s)
        self._clock = clock
        self._rates: deque[float] = deque(maxlen=MAX_RATES)
        self._interval_s = interval_s
        self._numbers = Numbers(rates=self._rates)
        self._heard_at: datetime | None = None

    def get_default_screen(self) -> TopScreen:
        return self._top

    def on_ready(self) -> None:
        # Not on_mount: the panels that the first snapshot fills are not there yet.
        self.run_worker(self._feed.run(), name="feed", exit_on_error=False)

    @property
    def has_heard(self) -> bool:
        """Whether a daemon ever answered."""
        return self._heard_at is not None

    # What the feed says

    @on(Snapshot)
    def _show_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot.requests is not None:
            self._requests.reload(snapshot.requests)
        if self._numbers.status is None:
            self._rates.extend(self._rates_before(snapshot.requests or []))
        else:
            self._rates.append(rate_between(self._numbers.status, snapshot.status, self._interval_s))
        self._numbers.status, self._numbers.stats = snapshot.status, snapshot.stats
        self._heard_at = self._clock()
        self._top.show_numbers(self._numbers)
        if snapshot.requests is not None:
            self._show_requests()
        suspended = snapshot.status["semantic"]["suspended"]
        warnings = [suspended_words(suspended)] if suspended else snapshot.status["warnings"]
        self._top.show_banner(f"⚠ {warnings[0]}" if warnings else "", urgent=False)

    @on(RequestsChanged)
    def _merge_requests(self, event: RequestsChanged) -> None:
        self._requests.merge(event.receipts)
        self._show_requests()

    @on(ModelChanged)
    def _show_model(self, event: ModelChanged) -> None:
        if self._numbers.status is not None:
            self._numbers.status = {**self._numbers.status, "model": event.model}
            self._top.show_numbers(self._numbers)

    @on(SourceLost)
    def _show_loss(self, lost: SourceLost) -> None:
        away = isinstance(lost.error, DaemonUnreachableError)
        if self._heard_at is None:
            text = NOT_RUNNING if away else str(lost.error)
        else:
            since = self._heard_at.astimezone().strftime("%H:%M:%S")
            reason = "the daemon went away" if away else str(lost.error)
            text = f"reconnecting… {reason}; what you see is from {since}"
        self._top.show_banner(text, urgent=True)

    def _show_requests(self) -> None:
        self._top.show_requests()
        if isinstance(self.screen, DetailScreen):
            shown = self.screen.receipt
            newest = self._requests.by_id.get(shown["id"], shown)
            if newest is not shown:
                self.screen.show(newest)

    def _rates_before(self, requests: list[AskReceipt]) -> list[float]:
        """Requests per second before `top` was opened, so that the chart does not begin empty."""
        now, interval_s = self._clock(), self._interval_s
        rates = [0.0] * 60
        for receipt in requests:
            created = created_at(receipt)
            ago = int((now - created).total_seconds() / interval_s) if created else -1
            if 0 <= ago < len(rates):
                rates[-1 - ago] += 1 / interval_s
        return rates

    # Keys

    @on(TopScreen.Opened)
    def _open_detail(self, event: TopScreen.Opened) -> None:
        semantic = self._numbers.status["semantic"] if self._numbers.status else None
        threshold = semantic["threshold"] if semantic and semantic["policy"] == "threshold" else None
        receipt = self._requests.by_id[event.request_id]
        self.push_screen(DetailScreen(receipt, self._source, threshold=threshold, readonly=self._readonly))

    @on(MarkAsked)
    def _mark(self, event: MarkAsked) -> None:
        self._marking.press(event.receipt)

    def action_help(self) -> None:
        if not isinstance(self.screen, HelpScreen):
            changing = ("ask", "mark_wrong") if self._readonly else ()
            groups = {
                "Top": TopScreen.BINDINGS, "Table": LiveTable.BINDINGS, "Details": DetailScreen.BINDINGS,
                "Everywhere": self.BINDINGS,
            }  # fmt: skip
            shown = {
                title: [b for b in bindings if not (isinstance(b, Binding) and b.action in changing)]
                for title, bindings in groups.items()
            }
            self.push_screen(HelpScreen(shown))

    def action_poll_now(self) -> None:
        self._feed.poll_now()

    def action_save_svg(self) -> None:
        path = self.save_screenshot(f"semcache-top-{self._clock():%Y%m%d-%H%M%S}.svg", path=".")
        self.notify(f"saved {path}", timeout=3)


def rate_between(before: Status, after: Status, interval_s: float) -> float:
    """Requests per second between two polls; a restarted daemon counts from nothing, a late poll covers more time."""
    same = before["pid"] == after["pid"]
    number = sum(after["outcomes"].get(o, 0) - (before["outcomes"].get(o, 0) if same else 0) for o in OUTCOMES)
    elapsed_s = max(interval_s, after["uptime_s"] - before["uptime_s"] if same else 0.0)
    return max(0, number) / elapsed_s


def run_top(
    *, socket: Path | None, url: str | None, once: bool, as_json: bool, interval_s: float, readonly: bool,
    token: str | None = None,
) -> int:  # fmt: skip
    """The command: the live screen on a terminal, a plain table with `once` and in a pipe. Returns the exit code."""
    # Textual reads stdin and draws on stderr; stdout tells whether a person or a program wants the output.
    on_terminal = all(stream.isatty() for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__) if stream)

    async def run() -> int:
        async with Client(socket=socket, url=url, token=token) as client:
            if once or as_json or not on_terminal:
                await print_once(client, sys.stdout, as_json=as_json)
                return 0
            app = TopApp(client, interval_s=interval_s, readonly=readonly)
            await app.run_async()
            return app.return_code or 0

    return asyncio.run(run())
