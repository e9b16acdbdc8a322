"""The help overlay: every key, read from the bindings themselves, and what the glyphs mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from semcache.tui.outcomes import STYLES, outcome_badge

_OUTCOMES = {
    "exact": "the stored answer of the identical request: the same bytes",
    "semantic": "the stored answer of a differently worded prompt: measured",
    "draft": "a stored answer as a draft that the model verified",
    "prefix": "stored KV of the same leading tokens; the rest computed",
    "miss": "nothing reused",
}
_FILTERS = {
    "outcome:miss": "also running and failed; the beginning of a word is enough",
    "user:alice": "part of the user's name",
    "any words": "in prompt, matched prompt, reason or id",
}
_NAMES = {
    "question_mark": "?", "slash": "/", "comma": ",", "full_stop": ".", "escape": "esc", "pagedown": "pgdn",
    "pageup": "pgup",
}  # fmt: skip
_KEY_WIDTH = 14


def _documented(bindings: Iterable[BindingType]) -> list[Binding]:
    return [binding for binding in bindings if isinstance(binding, Binding) and binding.description]


def _shown_key(binding: Binding) -> str:
    return " ".join(_NAMES.get(key, key) for key in binding.key.split(","))


def _block(title: str, lines: Iterable[tuple[Content | str, str]]) -> Content:
    rows = [(Content.styled(key, ".strong") if isinstance(key, str) else key, text) for key, text in lines]
    padded = [key.pad_right(_KEY_WIDTH - key.cell_length) + Content(text) for key, text in rows]
    return Content("\n").join([Content.styled(title, ".faint"), *padded])


class HelpScreen(ModalScreen[None]):
    COMPONENT_CLASSES: ClassVar[set[str]] = STYLES
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,question_mark,f1,q", "dismiss", "Close", id="help.close")
    ]

    def __init__(self, groups: dict[str, list[BindingType]]) -> None:
        super().__init__()
        self._groups = groups

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help") as area:
            area.border_title = "Help"
            area.border_subtitle = "esc close"
            yield Static(self._content(), markup=False)

    def _content(self) -> Content:
        blocks = [
            _block(title, [(_shown_key(b), b.tooltip or b.description) for b in _documented(bindings)])
            for title, bindings in self._groups.items()
        ]
        blocks.append(_block("Outcomes", [(outcome_badge(name), text) for name, text in _OUTCOMES.items()]))
        blocks.append(_block("Filter", _FILTERS.items()))
        return Content("\n\n").join(blocks)
