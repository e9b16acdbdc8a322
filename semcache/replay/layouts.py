"""One record to rows: which field is the question, which the expected answer, in every layout that we read.

A layout is a function from a record to fields, tried in the order of `RowReader.rows`. Field names are compared
without case and surrounding blanks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from semcache.errors import DatasetError, UsageError
from semcache.replay.fields import (
    ANSWER,
    CONTEXT,
    GROUP,
    Fields,
    Raw,
    Unreadable,
    answers_of,
    checked,
    common_of,
    first,
    listed,
    lowered,
    optional,
    problem,
    question_of,
    scalar,
    text_of,
)
from semcache.replay.formats import Record, json_kind

TURNS = ("conversations", "conversation", "messages")
MAPPABLE = ("question", "answer", "context", "group", "split")


def parse_mapping(text: str | None) -> dict[str, str]:
    """`question=q,answer=a` as a dictionary; `system` is another word for `context`."""
    mapping: dict[str, str] = {}
    for pair in (text or "").split(","):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        ours = "context" if ours == "system" else ours
        if not pair.strip():
            continue
        if not equals or not theirs or ours not in MAPPABLE or ours in mapping:
            raise UsageError(
                f"--map {text!r}: {pair.strip()!r} is not NAME=FIELD with each NAME one of {', '.join(MAPPABLE)}, once",
                param="map",
            )
        mapping[ours] = theirs
    return mapping


class RowReader:
    """Turns the records of one file into rows and remembers which mapped fields it has met."""

    def __init__(self, path: Path, mapping: Mapping[str, str]) -> None:
        self._path = path
        self._mapping = mapping
        self._met: set[str] = set()
        self._seen_keys: dict[str, None] = {}

    def rows(self, record: Record) -> Iterator[Fields]:
        """The rows of one record: one, except for an intent with several wordings."""
        try:
            for fields in self._layout(record.value)(record.value):
                yield checked(fields)
        except Unreadable as reason:
            raise DatasetError(f"{self._path}, {record.where}: {reason}") from None

    def check_mapping_was_used(self) -> None:
        """A mapped field that no row has is a typing error, not a file without answers."""
        for ours, theirs in self._mapping.items():
            if ours not in self._met:
                raise DatasetError(
                    f"{self._path}: --map {ours}={theirs}: no row has a field {theirs!r}; "
                    f"fields seen: {listed(self._seen_keys)}"
                )

    def _layout(self, value: Any) -> Callable[[Any], Iterator[Fields]]:
        if isinstance(value, str) and "question" not in self._mapping:
            return _plain_text
        if not isinstance(value, dict):
            raise Unreadable(f"expected an object with a question, found {json_kind(value)}")
        self._seen_keys.update(dict.fromkeys(value))
        if self._mapping:
            return self._mapped
        keys = lowered(value)
        if any(isinstance(keys.get(name), list) for name in TURNS):
            return _conversation
        if isinstance(keys.get("text"), list) or isinstance(keys.get("patterns"), list):
            return _intent
        return _instruction if "instruction" in keys else _plain_record

    def _mapped(self, value: Raw) -> Iterator[Fields]:
        """Mapped fields by their exact names, the others as usual."""
        keys = lowered(value)
        found: dict[str, Any] = {}
        for ours, theirs in self._mapping.items():
            if theirs in value:
                self._met.add(ours)
                found[ours] = value[theirs]
            elif ours == "question":
                raise Unreadable(f"no field {theirs!r} for the question; it has {listed(value)}")
        yield Fields(
            question=text_of(found["question"], "question") if "question" in found else question_of(keys, value),
            answers=answers_of(found.get("answer") if "answer" in self._mapping else first(keys, ANSWER)),
            context=optional(found.get("context") if "context" in self._mapping else first(keys, CONTEXT), "context"),
            group=scalar(found.get("group") if "group" in self._mapping else first(keys, GROUP), "group"),
            split=scalar(found.get("split") if "split" in self._mapping else keys.get("split"), "split"),
        )


def _plain_text(value: str) -> Iterator[Fields]:
    yield Fields(value)


def _plain_record(value: Raw) -> Iterator[Fields]:
    keys = lowered(value)
    answers = answers_of(first(keys, ANSWER)) or _webqsp_answers(keys.get("parses"))
    yield Fields(question_of(keys, value), answers, **common_of(keys))


def _instruction(value: Raw) -> Iterator[Fields]:
    """instruction/input/output: with an input the instruction is the system message, without one it is the question."""
    keys = lowered(value)
    instruction = text_of(keys["instruction"], "instruction")
    common = common_of(keys)
    given = optional(keys.get("input"), "input")
    if given is not None:
        common["context"] = "\n\n".join(part for part in (common["context"], instruction) if part)
    yield Fields(given or instruction, answers_of(first(keys, ANSWER)), **common)


def _intent(value: Raw) -> Iterator[Fields]:
    """An intent with several wordings: each wording is a row, the intent is their group, and no answer is checked.

    Its `responses` are random replies to choose from and its `context` is the state of a dialogue: neither is used.
    """
    keys = lowered(value)
    name = scalar(keys.get("intent", keys.get("tag")), "intent")
    wordings = keys["text"] if isinstance(keys.get("text"), list) else keys["patterns"]
    if not wordings:
        raise Unreadable(f"intent {name!r} has no text")
    for number, wording in enumerate(wordings, start=1):
        if not isinstance(wording, str) or not wording.strip():
            raise Unreadable(f"intent {name!r}, text {number}: {problem(wording)}")
        yield Fields(wording, group=name, split=scalar(keys.get("split"), "split"))


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _conversation(value: Raw) -> Iterator[Fields]:
    """ShareGPT and chat messages: the first user turn and the answer that follows it; later turns are not replayed."""
    keys = lowered(value)
    turns = [_turn(item, number) for number, item in enumerate(first(keys, TURNS), start=1)]
    start = next((at for at, (role, _text) in enumerate(turns) if role == "user"), None)
    if start is None:
        raise Unreadable("the conversation has no turn of a user")
    system = next((text for role, text in turns[:start] if role == "system"), None)
    reply = next((text for role, text in turns[start + 1 : start + 2] if role == "assistant"), None)
    common = common_of(keys)
    common["context"] = system or common["context"]
    yield Fields(turns[start][1], answers_of(reply), **common)


def _turn(item: Any, number: int) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise Unreadable(f"turn {number} is {json_kind(item)}, not an object")
    role = item.get("role", item.get("from"))
    text = item.get("content", item.get("value"))
    if not isinstance(role, str):
        raise Unreadable(f"turn {number} has no 'from' or 'role'")
    if isinstance(text, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in text):
        text = "".join(part["text"] for part in text)
    if not isinstance(text, str):
        raise Unreadable(f"turn {number} has no text in 'value' or 'content'")
    return _ROLES.get(role, role), text


def _webqsp_answers(parses: Any) -> tuple[str, ...]:
    """The names of the answer entities over all parses of a WebQSP question, without repeats."""
    names: dict[str, None] = {}
    for parse in parses if isinstance(parses, list) else ():
        answers = parse.get("Answers") if isinstance(parse, dict) else None
        for answer in answers if isinstance(answers, list) else ():
            name = (answer.get("EntityName") or answer.get("AnswerArgument")) if isinstance(answer, dict) else None
            if isinstance(name, str) and name.strip():
                names[name] = None
    return tuple(names)
