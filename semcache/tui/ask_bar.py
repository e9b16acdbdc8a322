"""Asking from inside `top`: one prompt line, and an answer that streams in under the badge of its outcome."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar, cast

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Label, Static

from semcache.errors import SemcacheError
from semcache.tui import units
from semcache.tui.feed import Source
from semcache.tui.outcomes import outcome_badge
from semcache.wire.receipts import AskReceipt, CacheReceipt

_HINT = "a: ask the model · enter: send · escape: back"


class PromptInput(Input):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back to the table", id="ask.leave")]

    class Left(Message):
        """Escape was pressed."""

    def action_leave(self) -> None:
        self.post_message(self.Left())


class AskBar(Vertical):
    """The prompt line and the newest answer. `source` None: readonly, nothing can be asked."""

    def __init__(self, source: Source | None) -> None:
        super().__init__(id="ask")
        self._source = source
        self._badge = Content("")
        self._text = ""
        self._receipt_line = Content("")
        self._draw_is_due = False

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="answer", can_focus=False):
            yield Static(id="answer-text", markup=False)
        with Horizontal(id="prompt-line"):
            yield Label("ask ❯ ")
            yield PromptInput(placeholder=_HINT, compact=True, select_on_focus=False, id="prompt")

    def on_mount(self) -> None:
        self.display = self._source is not None

    @property
    def has_answer(self) -> bool:
        return self.has_class("-answered")

    def close_answer(self) -> None:
        """Hide the answer; one that is still being made is cancelled."""
        self.workers.cancel_group(self, "ask")
        self.remove_class("-answered")

    def send(self, model: str | None) -> None:
        """Ask what is in the prompt line."""
        prompt = self.query_one(PromptInput).value.strip()
        if not prompt or self._source is None:
            return
        self.query_one(PromptInput).value = ""
        self._badge, self._text = Content.styled("▸ asking", ".running"), ""
        self._receipt_line = Content.styled(f"  {units.one_line(prompt)}", ".faint")
        self.add_class("-answered")
        self._draw_soon()
        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        if model is not None:
            body["model"] = model
        self._stream(self._source, body)

    @work(exclusive=True, group="ask", exit_on_error=False)
    async def _stream(self, source: Source, body: dict[str, Any]) -> None:
        answer = source.ask_stream(body)
        try:
            # Closing the stream is what tells the daemon to stop computing.
            async with aclosing(cast("Any", answer)) as parts:
                await self._take(parts)
        except SemcacheError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - an edge: a broken answer must not end the app
            self._fail(f"{type(error).__name__}: {error}")

    async def _take(self, parts: AsyncIterator[CacheReceipt | str | AskReceipt]) -> None:
        async for part in parts:
            if isinstance(part, str):
                self._text += part
            elif "schema" in part:
                receipt = cast("AskReceipt", part)
                self._text = receipt["answer"] or self._text
                self._badge = outcome_badge(receipt["cache"]["outcome"])
                self._receipt_line = Content.styled(receipt_line(receipt), ".faint")
            else:
                self._badge = outcome_badge(part["outcome"])
            self._draw_soon()

    def _fail(self, message: str) -> None:
        self._badge, self._text = Content.styled("✗ failed", ".failed"), ""
        self._receipt_line = Content.styled(f"  {units.one_line(message)}", ".failed")
        self._draw_soon()

    def _draw_soon(self) -> None:
        """Once per screen refresh, however many tokens arrive."""
        if not self._draw_is_due:
            self._draw_is_due = True
            self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        self._draw_is_due = False
        area = self.query_one("#answer", VerticalScroll)
        width = max(1, area.size.width or self.size.width)
        first = (self._badge + self._receipt_line).truncate(width - 3, ellipsis=True)
        self.query_one("#answer-text", Static).update(first + Content(f"\n{self._text}" if self._text else ""))
        area.scroll_end(animate=False)


def receipt_line(receipt: AskReceipt) -> str:
    """The receipt in one line: score, what was found, time, tokens."""
    cache, timing, usage = receipt["cache"], receipt["timing_ms"], receipt["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    parts = [f"score {units.score(cache['score'])}"] if cache["score"] is not None else []
    parts += [
        f"first token {units.ms(timing['ttft'])}",
        f"total {units.ms(timing['total'])}",
        f"{units.count(cached)} of {units.count(usage['prompt_tokens'])} prompt tokens reused",
    ]
    if cache["matched_prompt"] and cache["outcome"] != "exact":
        parts.append(f"matched: {units.one_line(cache['matched_prompt'])}")
    return "  " + " · ".join(parts)
