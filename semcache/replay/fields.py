"""The fields of one record under their many names: text is text, blank is nothing, and a refusal has a reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semcache.replay.formats import WRAPPERS, json_kind

# Names are compared without case and surrounding blanks; the first that a record has is taken.
QUESTION = ("question", "prompt", "input", "text", "questions", "rawquestion", "processedquestion")
ANSWER = ("answer", "answers", "output", "response", "completion", "expected", "expected_answer", "target")
CONTEXT = ("context", "system")
GROUP = ("group", "class_id")

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Fields:
    """A row without its number."""

    question: str
    answers: tuple[str, ...] = ()
    context: str | None = None
    group: str | None = None
    split: str | None = None


class Unreadable(Exception):
    """Why a record is no row; who knows file and place adds them."""


def common_of(keys: Raw) -> dict[str, Any]:
    """What rows of every layout may have besides question and answer."""
    return {
        "context": optional(first(keys, CONTEXT), "context"),
        "group": scalar(first(keys, GROUP), "group"),
        "split": scalar(keys.get("split"), "split"),
    }


def question_of(keys: Raw, value: Raw) -> str:
    """The question; `value` is the record as it was written, for the message."""
    found = next((name for name in QUESTION if keys.get(name) is not None), None)
    if found is None:
        present = next((name for name in QUESTION if name in keys), None)
        if present:
            raise Unreadable(f"{present!r} is null")
        raise Unreadable(
            f"no field holds the question; it has {listed(value)}, expected one of {', '.join(QUESTION[:4])} "
            f"or a list under {'|'.join(WRAPPERS)}; name the field with --map question=FIELD"
        )
    return text_of(keys[found], found)


def answers_of(value: Any) -> tuple[str, ...]:
    """An answer, or several accepted ones; blank means that none is expected."""
    values = value if isinstance(value, list) else [value]
    texts = (scalar(item, "answer") for item in values)
    return tuple(text for text in texts if text is not None)


def scalar(value: Any, name: str) -> str | None:
    """Text, or a number as text; blank is None."""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return optional(value, name)


def optional(value: Any, name: str) -> str | None:
    if value is None:
        return None
    text = text_of(value, name)
    return text if text.strip() else None


def text_of(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Unreadable(f"{name!r} is {json_kind(value)}, not text")
    return value


def problem(value: Any) -> str:
    return "the question is empty" if isinstance(value, str) else f"the question is {json_kind(value)}, not text"


def checked(fields: Fields) -> Fields:
    """Fields that can be asked and sent."""
    if not fields.question.strip():
        raise Unreadable(problem(fields.question))
    for text in (fields.question, fields.context, fields.group, fields.split, *fields.answers):
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise Unreadable("holds half of a surrogate pair, which no UTF-8 text can carry") from None
    return fields


def first(keys: Raw, names: tuple[str, ...]) -> Any:
    return next((keys[name] for name in names if keys.get(name) is not None), None)


def lowered(value: Raw) -> Raw:
    return {key.strip().casefold(): item for key, item in value.items()}


def listed(keys: Mapping[str, Any]) -> str:
    shown = [repr(key) for key in list(keys)[:12]]
    return (", ".join(shown) or "no fields") + (" …" if len(keys) > 12 else "")
