"""One request in full: what it matched and how it differs, why, where the time went, what came out."""

from __future__ import annotations

import difflib
import json
from typing import ClassVar, cast

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from semcache.errors import SemcacheError
from semcache.tui import units
from semcache.tui.candidates import candidates
from semcache.tui.feed import Source
from semcache.tui.marking import MarkAsked
from semcache.tui.outcomes import STYLES, badge, is_running
from semcache.tui.request_log import local_time
from semcache.wire.receipts import AskReceipt, Timing
from semcache.wire.trust import Explanation
from semcache.wording import reason_words

_LABEL_WIDTH = 9
# In the order in which a request goes through them: it waits for a slot after the look-up.
_PHASES = ("embed", "lookup", "queue", "restore", "prefill", "decode")


def word_diff(asked: str, matched: str) -> tuple[Content, Content]:
    """Both wordings; `{+new+}` words only in the first, `[-old-]` words only in the second."""
    ours, theirs = asked.split(), matched.split()
    left: list[Content] = []
    right: list[Content] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        old, new = " ".join(theirs[i:j]), " ".join(ours[k:m])
        if kind == "equal":
            left.append(Content(new))
            right.append(Content(old))
            continue
        if new:
            left.append(Content.styled(f"{{+{new}+}}", ".added"))
        if old:
            right.append(Content.styled(f"[-{old}-]", ".removed"))
    return Content(" ").join(left), Content(" ").join(right)


def score_bar(score: float, threshold: float | None, width: int) -> Content:
    """A ruler that ends at 1; `●` is the score, `┊` the threshold."""
    low = 0.8 if min(score, threshold or 1.0) >= 0.8 else 0.0

    def at(value: float) -> int:
        return round((min(1.0, max(low, value)) - low) / (1.0 - low) * (width - 1))

    cells = ["─"] * width
    if threshold is not None:
        cells[at(threshold)] = "┊"
    cells[at(score)] = "●"
    said = f"{score:.3f}  {low:.1f} ├{''.join(cells)}┤ 1.0"
    return Content(said + (f"  threshold {threshold:.3f}" if threshold is not None else ""))


def waterfall(timing: Timing, width: int) -> Content:
    """Phases one after the other on one time axis."""
    known = [(name, cast("float | None", timing.get(name))) for name in _PHASES]
    spans = [(name, value) for name, value in known if value is not None]
    whole = max(sum(value for _name, value in spans), timing["total"] or 0.0)
    axis = max(4, width - _LABEL_WIDTH - 11)
    lines: list[Content] = []
    begin = 0.0
    for name, value in spans:
        start = min(axis - 1, int(begin / whole * axis)) if whole else 0
        cells = max(1, round(value / whole * axis)) if whole else 1
        bar = ("━" * min(cells, axis - start)) if value / (whole or 1.0) >= 0.5 / axis else "╸"
        label = Content.styled(f"{name:<{_LABEL_WIDTH}}", ".faint")
        lines.append(Content.assemble(label, f"{units.ms(value):>9}  ", (" " * start + bar, ".running")))
        begin += value
    totals = [("first token", timing["ttft"]), ("second", timing["second_token"]), ("total", timing["total"])]
    said = " · ".join(f"{name} {units.ms(value)}" for name, value in totals if value is not None)
    return Content("\n").join([*lines, Content.assemble((" " * _LABEL_WIDTH, ""), (said, ".strong"))])


def detail(receipt: AskReceipt, threshold: float | None, width: int, found: Explanation | None = None) -> Content:
    """Everything the receipt says, and what was considered where that is known, for `width` cells."""
    cache, usage = receipt["cache"], receipt["usage"]
    prompt, matched = Content(receipt["prompt"]), None
    if cache["matched_prompt"] and cache["reason"] != "identical":
        prompt, matched = word_diff(receipt["prompt"], cache["matched_prompt"])
    who = f"  {receipt['user']} · {cache['strategy']} · {receipt['id']}"
    rows: list[tuple[str, Content]] = [("outcome", badge(receipt) + Content.styled(who, ".faint")), ("prompt", prompt)]
    if matched is not None:
        rows.append(("matched", matched))
    if cache["entry"] is not None:
        age = f" · {units.duration(cache['entry_age_s'])} old" if cache["entry_age_s"] is not None else ""
        scope = f" · {cache['scope']} scope" if cache["scope"] else ""
        rows.append(("entry", Content(f"{cache['entry']}{age}{scope}")))
    if cache["score"] is not None:
        rows.append(("score", score_bar(cache["score"], threshold, max(10, width - _LABEL_WIDTH - 40))))
    rows.append(("reason", Content.assemble(reason_words(cache["reason"]), (f"  {cache['reason']}", ".faint"))))
    if cache["prefix_tokens"] or cache["draft_tokens"]:
        rows.append(("reused", Content(_reused(receipt))))
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    rows.append(("tokens", Content(
        f"prompt {units.count(usage['prompt_tokens'])}, {units.count(cached)} of them not computed · "
        f"answer {units.count(usage['completion_tokens'])}{_passes(cache.get('passes'))}"
    )))  # fmt: skip
    if receipt.get("error"):
        rows.append(("error", Content.styled(units.one_line(str(receipt.get("error"))), ".failed")))
    body = Content("\n").join(_row(label, content, width) for label, content in rows)
    heading = Content.styled("answer so far" if is_running(receipt) else "answer", ".faint")
    answer = Content(receipt["answer"]) if receipt["answer"] else Content.styled("nothing yet", ".faint")
    considered = candidates(found, width) if found is not None else Content("")
    parts = [body, considered, waterfall(receipt["timing_ms"], width), heading + Content("\n") + answer]
    return Content("\n\n").join(part for part in parts if part.plain)


def _passes(number: int | None) -> str:
    return "" if number is None else f" · {number} forward {'pass' if number == 1 else 'passes'}"


def _reused(receipt: AskReceipt) -> str:
    cache = receipt["cache"]
    parts = [f"{units.count(cache['prefix_tokens'])} prompt tokens restored"] if cache["prefix_tokens"] else []
    if cache["draft_tokens"]:
        parts.append(f"{cache['draft_accepted']} of {cache['draft_tokens']} drafted tokens accepted")
    return " · ".join(parts)


def _row(label: str, content: Content, width: int) -> Content:
    """A label and its text, wrapped with a hanging indent."""
    lines = content.wrap(max(1, width - _LABEL_WIDTH)) or [Content("")]
    indent = "\n" + " " * _LABEL_WIDTH
    return Content.styled(f"{label:<{_LABEL_WIDTH}}", ".faint") + Content(indent).join(lines)


class DetailScreen(ModalScreen[None]):
    """Over the table; goes on with its request while it runs."""

    COMPONENT_CLASSES: ClassVar[set[str]] = STYLES
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "Back", id="detail.back"),
        Binding("y", "copy", "Copy JSON", id="detail.copy"),
        Binding("w", "mark_wrong", "Wrong", tooltip="Mark the answer as wrong (asks first)", id="detail.wrong"),
        Binding("down,j", "scroll(1)", "Scroll", show=False, id="detail.down"),
        Binding("up,k", "scroll(-1)", "Scroll back", show=False, id="detail.up"),
    ]

    def __init__(self, receipt: AskReceipt, source: Source, *, threshold: float | None, readonly: bool) -> None:
        super().__init__()
        self.receipt = receipt
        self._source = source
        self._threshold = threshold
        self._readonly = readonly
        self._found: Explanation | None = None
        self._has_asked = False

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="detail"):
            yield Static(id="detail-text", markup=False)

    def on_mount(self) -> None:
        self.call_after_refresh(self._draw)
        self._ask_why()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (action == "mark_wrong" and self._readonly)

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def show(self, receipt: AskReceipt) -> None:
        self.receipt = receipt
        self._draw()
        self._ask_why()

    def _ask_why(self) -> None:
        """Once, when the request has ended: what was considered does not change any more."""
        if not (self._has_asked or is_running(self.receipt)):
            self._has_asked = True
            self._fetch_explanation()

    @work(exit_on_error=False)
    async def _fetch_explanation(self) -> None:
        try:
            self._found = await self._source.explained(self.receipt["id"])
        except SemcacheError:
            return  # too old to be remembered, or the daemon went away, which the banner says
        self._draw()

    def _draw(self) -> None:
        area = self.query_one("#detail", VerticalScroll)
        area.border_title = Content(f"Request · {local_time(self.receipt)}")
        keys = ["y copy JSON", "esc back"] if self._readonly else ["w wrong", "y copy JSON", "esc back"]
        area.border_subtitle = Content(" · ".join(keys))
        width = max(30, area.scrollable_content_region.width)
        self.query_one("#detail-text", Static).update(detail(self.receipt, self._threshold, width, self._found))

    def action_scroll(self, step: int) -> None:
        self.query_one("#detail", VerticalScroll).scroll_relative(y=step, animate=False)

    def action_mark_wrong(self) -> None:
        self.post_message(MarkAsked(self.receipt))

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(json.dumps(self.receipt, ensure_ascii=False, indent=2))
        self.notify("receipt copied to the clipboard", timeout=2)
