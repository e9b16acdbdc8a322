"""The one main screen: header, banner, overview, requests, prompt line. It shows what the app hands it."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from semcache.tui.ask_bar import AskBar, PromptInput
from semcache.tui.feed import Source
from semcache.tui.live_table import LiveTable
from semcache.tui.marking import MarkAsked
from semcache.tui.outcomes import STYLES
from semcache.tui.overview import Header, Overview
from semcache.tui.panels import Numbers
from semcache.tui.request_log import SORT_COLUMNS, Order, RequestLog
from semcache.tui.requests import RequestTable
from semcache.tui.users import UsersTable


class FilterInput(Input):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "clear", "Clear the filter", id="filter.clear")]

    class Cleared(Message):
        """Escape was pressed."""

    def action_clear(self) -> None:
        self.post_message(self.Cleared())


class TopScreen(Screen[None]):
    COMPONENT_CLASSES: ClassVar[set[str]] = STYLES
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (150, "-wide")]  # noqa: RUF012 - Textual's attribute
    VERTICAL_BREAKPOINTS = [(0, "-short"), (20, "-medium"), (30, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        # Keys that move the focus have priority: the app acts on them before it hands out the next key. Otherwise what
        # is typed right behind them goes to the table and is lost. In a text field they are letters (check_action).
        Binding("a", "ask", "Ask", tooltip="Ask the model from here", id="top.ask", priority=True),
        Binding("slash", "filter", "Filter", tooltip="Show only requests that match", id="top.filter", priority=True),
        Binding("comma", "sort(-1)", "Sort by the column before", show=False, id="top.sort_left"),
        Binding("full_stop", "sort(1)", "Sort", True, ",.", tooltip="Sort by the next column", id="top.sort_right"),
        Binding("r", "reverse", "Reverse", show=False, tooltip="Reverse the order", id="top.reverse"),
        Binding("p", "pause", "Pause", tooltip="Hold the table still; the panels go on", id="top.pause"),
        Binding("u", "users", "Users", tooltip="Users in place of requests, and back", id="top.users"),
        Binding("w", "mark_wrong", "Wrong", tooltip="Mark a semantic hit as wrong (asks first)", id="top.wrong"),
        Binding("escape", "back", "Close the answer, the users, the filter", show=False, id="top.back"),
    ]

    class Opened(Message):
        """The user wants to see one request in full."""

        def __init__(self, request_id: str) -> None:
            super().__init__()
            self.request_id = request_id

    def __init__(self, log: RequestLog, source: Source | None) -> None:
        """`source` None: nothing can be asked or marked."""
        super().__init__()
        self._log = log
        self._source = source
        self._model: str | None = None

    def compose(self) -> ComposeResult:
        yield Header()
        yield Static(id="banner", markup=False)
        yield Overview(id="overview")
        yield FilterInput(placeholder="filter: words, outcome:miss, user:alice", compact=True, id="filter")
        yield RequestTable(self._log)
        yield AskBar(self._source)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.set_focus(self.query_one(RequestTable))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("ask", "filter") and isinstance(self.focused, Input):
            return False
        return not (action in ("ask", "mark_wrong") and self._source is None)

    # What the app hands in

    def show_numbers(self, numbers: Numbers) -> None:
        self._model = numbers.status["model"]["name"] if numbers.status else None
        with self.app.batch_update():
            self.query_one(Header).show(numbers)
            self.query_one(Overview).show(numbers)

    def show_requests(self) -> None:
        with self.app.batch_update():
            self.query_one(RequestTable).update_rows()

    def show_banner(self, text: str, *, urgent: bool) -> None:
        """An empty text hides it."""
        banner = self.query_one("#banner", Static)
        banner.set_class(bool(text), "-shown")
        banner.set_class(urgent, "-urgent")
        if banner.content != text:
            banner.update(Content(text))

    # Keys

    def action_ask(self) -> None:
        # At once, unlike Widget.focus: keys typed right behind this one belong to the prompt.
        self.set_focus(self.query_one(PromptInput))

    def action_filter(self) -> None:
        self.query_one(FilterInput).add_class("-shown")
        self.set_focus(self.query_one(FilterInput))

    def action_sort(self, step: int) -> None:
        table = self.query_one(RequestTable)
        table.set_order(table.order.shifted(step))

    def action_reverse(self) -> None:
        table = self.query_one(RequestTable)
        table.set_order(table.order.reversed())

    def action_pause(self) -> None:
        self.query_one(RequestTable).toggle_pause()

    def action_users(self) -> None:
        """Users in place of requests, and back."""
        self.toggle_class("-users")
        shown = UsersTable if self.has_class("-users") else RequestTable
        self.set_focus(self.query_one(shown))

    def action_mark_wrong(self) -> None:
        selected = self._log.by_id.get(self.query_one(RequestTable).cursor_key or "")
        if selected is not None and not self.has_class("-users"):
            self.post_message(MarkAsked(selected))

    def action_back(self) -> None:
        ask_bar, table = self.query_one(AskBar), self.query_one(RequestTable)
        if ask_bar.has_answer:
            ask_bar.close_answer()
        elif self.has_class("-users"):
            self.action_users()
        elif table.filter.text:
            self._clear_filter()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self.query_one(RequestTable).set_filter(event.value)

    @on(Input.Submitted, "#filter")
    def _filter_kept(self) -> None:
        self.query_one(FilterInput).remove_class("-shown")
        self.set_focus(self.query_one(RequestTable))

    @on(FilterInput.Cleared)
    def _clear_filter(self) -> None:
        field = self.query_one(FilterInput)
        field.value = ""
        field.remove_class("-shown")
        self.set_focus(self.query_one(RequestTable))

    @on(Input.Submitted, "#prompt")
    def _send(self) -> None:
        self.query_one(AskBar).send(self._model)

    @on(PromptInput.Left)
    def _leave_prompt(self) -> None:
        self.set_focus(self.query_one(RequestTable))

    @on(LiveTable.HeaderPressed)
    def _sort_by(self, event: LiveTable.HeaderPressed) -> None:
        table = self.query_one(RequestTable)
        if event.column in SORT_COLUMNS and not self.has_class("-users"):
            same = event.column == table.order.column
            table.set_order(table.order.reversed() if same else Order(event.column))

    @on(LiveTable.Opened)
    def _open(self, event: LiveTable.Opened) -> None:
        if event.key in self._log.by_id:
            self.post_message(self.Opened(event.key))
        else:
            self._show_requests_of(event.key)

    def _show_requests_of(self, user: str) -> None:
        if self.has_class("-users"):
            self.action_users()
        self.query_one(FilterInput).value = f"user:{user}"
        self.set_focus(self.query_one(RequestTable))
