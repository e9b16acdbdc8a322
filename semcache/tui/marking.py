"""`w`: say that the answer of another wording was wrong. The first press says what it would do, the second does it."""

from __future__ import annotations

from textual.app import App
from textual.message import Message
from textual.timer import Timer

from semcache.errors import SemcacheError
from semcache.tui import units
from semcache.tui.feed import Source
from semcache.tui.outcomes import is_running
from semcache.wire.receipts import AskReceipt
from semcache.wording import is_other_wording, marked_words

CONFIRM_S = 8.0
_MAX_PROMPT = 48


class MarkAsked(Message):
    """The user says that what this request was given is wrong."""

    def __init__(self, receipt: AskReceipt) -> None:
        super().__init__()
        self.receipt = receipt


class Marking:
    """Waits for the second press on the same request, and tells how it went."""

    def __init__(self, app: App[None], source: Source) -> None:
        self._app = app
        self._source = source
        self._waiting_for: str | None = None
        self._timer: Timer | None = None

    def press(self, receipt: AskReceipt) -> None:
        if is_running(receipt) or not is_other_wording(receipt["cache"]):
            self._forget()
            self._app.notify("only an answer stored for another wording can be marked wrong", timeout=4)
        elif self._waiting_for != receipt["id"]:
            self._forget()
            self._waiting_for = receipt["id"]
            self._timer = self._app.set_timer(CONFIRM_S, self._forget)
            self._app.notify(
                f"press w again if “{_cut(receipt['prompt'])}” was given a wrong answer: it is never served for this "
                "wording again",
                title="mark wrong?", severity="warning", timeout=CONFIRM_S,
            )  # fmt: skip
        else:
            self._forget()
            self._app.run_worker(self._mark(receipt["id"]), name="mark wrong", exit_on_error=False)

    def _forget(self) -> None:
        self._waiting_for = None
        if self._timer is not None:
            self._timer.stop()
            self._timer = None

    async def _mark(self, request_id: str) -> None:
        try:
            done = await self._source.feedback(request_id, "wrong")
        except SemcacheError as error:
            self._app.notify(error.message, title="not marked", severity="error", timeout=8)
        else:
            self._app.notify(marked_words(done), title="marked wrong", timeout=8)


def _cut(text: str) -> str:
    line = units.one_line(text)
    return line if len(line) <= _MAX_PROMPT else f"{line[: _MAX_PROMPT - 1]}…"
