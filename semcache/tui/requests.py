"""The request table: what was reused for whom and why; running requests move through their states."""

from __future__ import annotations

from textual.content import Content

from semcache.tui import units
from semcache.tui.live_table import Column, LiveTable
from semcache.tui.outcomes import badge, is_running, why
from semcache.tui.request_log import Filter, Order, RequestLog, local_time
from semcache.wire.receipts import AskReceipt

REQUEST_COLUMNS = (
    Column("time", "time", 8),
    Column("outcome", "outcome", 12),
    Column("score", "score", 6, right=True),
    Column("user", "user", 12, min_table=96),
    Column("prompt", "prompt", 6, grow=4),
    Column("why", "matched or reason", 6, grow=3, min_table=96),
    Column("ttft", "ttft", 8, right=True),
    Column("tokens", "tokens", 7, right=True, min_table=96),
    Column("total", "total", 8, right=True),
)

_EMPTY = Content.assemble(
    ("no requests yet\n", ".strong"), ("in another terminal: ", ".faint"), ('semcache ask "hello"', ".running")
)


def principal(user: str) -> str:
    return user.partition("/")[0]


def request_cells(receipt: AskReceipt, *, whole_user: bool) -> tuple[Content, ...]:
    """`whole_user` False leaves out the principal of a sub-user, where there is only one principal to see."""
    timing, usage = receipt["timing_ms"], receipt["usage"]
    total = "…" if is_running(receipt) else units.ms(timing["total"])
    return (
        Content.styled(local_time(receipt), ".faint"),
        badge(receipt),
        Content(units.score(receipt["cache"]["score"])),
        Content(receipt["user"] if whole_user else receipt["user"].rpartition("/")[2]),
        Content(units.one_line(receipt["prompt"])),
        why(receipt),
        Content(units.ms(timing["ttft"])),
        Content(units.count(usage["completion_tokens"])),
        Content(total),
    )


class RequestTable(LiveTable[AskReceipt]):
    """Filter, order and pause live here; the log keeps growing while the table is paused."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__(
            REQUEST_COLUMNS, lambda receipt: request_cells(receipt, whole_user=self._several_principals), id="requests"
        )
        self._log = log
        self.filter = Filter()
        self.order = Order()
        self.paused = False
        self._heard_at_pause: set[str] = set()
        self._several_principals = False

    def on_mount(self) -> None:
        self.update_rows(force=True)

    def update_rows(self, *, force: bool = False) -> None:
        """Show the log as it is now; while paused only on the user's own request."""
        log = self._log.by_id
        if not self.paused or force:
            known = [r for r in log.values() if not self.paused or r["id"] in self._heard_at_pause]
            shown = self.order.sorted(r for r in known if self.filter.matches(r))
            none_match = Content.styled(f"nothing matches “{self.filter.text}” — escape clears the filter", ".faint")
            several = len({principal(r["user"]) for r in known}) > 1
            if several != self._several_principals:
                self._several_principals = several
                self.refresh()
            self.show({r["id"]: r for r in shown}, empty=none_match if known else _EMPTY)
            self.mark_sorted(self.order.column, descending=self.order.descending)
        self.border_title = self._title()

    def _title(self) -> Content:
        parts = ["Requests"]
        if self.filter.text:
            parts.append(f"filter {self.filter.text} ({len(self.row_keys)} of {len(self._log.by_id)})")
        if self.paused:
            num_new = len(self._log.by_id.keys() - self._heard_at_pause)
            parts.append(f"paused, {num_new} new" if num_new else "paused")
        return Content(" · ".join(parts))

    def set_filter(self, text: str) -> None:
        self.filter = Filter(text.strip())
        self.update_rows(force=True)

    def set_order(self, order: Order) -> None:
        self.order = order
        self.update_rows(force=True)

    def toggle_pause(self) -> None:
        self.paused = not self.paused
        self._heard_at_pause = set(self._log.by_id)
        self.update_rows(force=not self.paused)
