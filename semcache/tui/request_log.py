"""The newest requests that `top` has heard of, and which of them are shown in what order. No widgets here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from semcache.tui.outcomes import STATES, is_running, state_of, word_of
from semcache.wire.receipts import AskReceipt

MAX_REQUESTS = 500


def created_at(receipt: AskReceipt) -> datetime | None:
    """None where the daemon sent something that is not a time."""
    try:
        created = datetime.fromisoformat(receipt["created"])
    except ValueError:
        return None
    return created if created.tzinfo else created.replace(tzinfo=UTC)


def local_time(receipt: AskReceipt) -> str:
    """Time of day where the terminal is."""
    created = created_at(receipt)
    return created.astimezone().strftime("%H:%M:%S") if created else "?"


class RequestLog:
    """Requests by id. Polls and events race, so a request only ever moves forward through its states."""

    def __init__(self, max_requests: int = MAX_REQUESTS) -> None:
        self.by_id: dict[str, AskReceipt] = {}
        self._max_requests = max_requests

    def merge(self, receipts: Iterable[AskReceipt]) -> None:
        for receipt in receipts:
            known = self.by_id.get(receipt["id"])
            if known is None or _rank(receipt) >= _rank(known):
                self.by_id[receipt["id"]] = receipt
        if len(self.by_id) > self._max_requests:
            newest = sorted(self.by_id.values(), key=lambda r: r["created"], reverse=True)[: self._max_requests]
            self.by_id = {receipt["id"]: receipt for receipt in newest}

    def reload(self, receipts: Iterable[AskReceipt]) -> None:
        """Merge the daemon's own list; what ran before and is not in it died with an earlier daemon."""
        heard = list(receipts)
        ids = {receipt["id"] for receipt in heard}
        for key, receipt in self.by_id.items():
            if key not in ids and is_running(receipt):
                self.by_id[key] = cast("AskReceipt", {**receipt, "state": "lost"})
        self.merge(heard)


def _rank(receipt: AskReceipt) -> int:
    state = state_of(receipt)
    return STATES.index(state) if state in STATES else 0


@dataclass(frozen=True)
class Filter:
    """`outcome:miss user:alice some words`: every field must match and the rest is one plain substring."""

    text: str = ""

    def matches(self, receipt: AskReceipt) -> bool:
        if not self.text:
            return True
        words = []
        for term in self.text.lower().split():
            name, colon, value = term.partition(":")
            if colon and name == "outcome":
                if not (word_of(receipt).startswith(value) or (value == "running" and is_running(receipt))):
                    return False
            elif colon and name == "user":
                if value not in receipt["user"].lower():
                    return False
            else:
                words.append(term)
        wanted = " ".join(words)
        said = (receipt["prompt"], receipt["cache"]["matched_prompt"] or "", receipt["cache"]["reason"], receipt["id"])
        return any(wanted in " ".join(text.lower().split()) for text in said)


_SORT_VALUES: dict[str, Callable[[AskReceipt], str | float | None]] = {
    "time": lambda r: r["created"],
    "outcome": word_of,
    "score": lambda r: r["cache"]["score"],
    "user": lambda r: r["user"],
    "prompt": lambda r: r["prompt"].lower(),
    "why": lambda r: (r["cache"]["matched_prompt"] or r["cache"]["reason"]).lower(),
    "ttft": lambda r: r["timing_ms"]["ttft"],
    "tokens": lambda r: r["usage"]["completion_tokens"],
    "total": lambda r: r["timing_ms"]["total"],
}
SORT_COLUMNS = tuple(_SORT_VALUES)


@dataclass(frozen=True)
class Order:
    """A sort column and its direction; newest first to begin with."""

    column: str = "time"
    descending: bool = True

    def shifted(self, step: int) -> Order:
        index = (SORT_COLUMNS.index(self.column) + step) % len(SORT_COLUMNS)
        return Order(SORT_COLUMNS[index], self.descending)

    def reversed(self) -> Order:
        return Order(self.column, not self.descending)

    def sorted(self, receipts: Iterable[AskReceipt]) -> list[AskReceipt]:
        """Unknown values last in both directions; equals newest first."""
        value = _SORT_VALUES[self.column]
        newest_first = sorted(receipts, key=lambda r: (r["created"], r["id"]), reverse=True)
        known = [r for r in newest_first if value(r) is not None]
        unknown = [r for r in newest_first if value(r) is None]
        # mypy cannot know that a column's values have one type.
        known.sort(key=value, reverse=self.descending)  # type: ignore[arg-type]
        return known + unknown
