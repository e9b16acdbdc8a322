"""Labelled questions and the streams drawn from them. The class of a question is the truth: one class, one answer."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """One wording; questions of one class have one answer."""

    text: str
    class_id: str


@dataclass(frozen=True)
class Pair:
    """Two wordings and whether people said that they ask the same."""

    a: str
    b: str
    same: bool


class BadDataError(ValueError):
    """A row that cannot be read; the message names file, row and reason."""


def normalised(text: str) -> str:
    """What makes two wordings an exact repeat: compatible characters, no case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_questions(path: Path) -> list[Question]:
    """Rows `{"question", "class_id"}` of JSONL, plain or gzip; exact repeats are left out, the first one stays."""
    found: dict[str, Question] = {}
    for number, row in _rows(path):
        if not isinstance(row.get("question"), str) or not row["question"].strip():
            raise BadDataError(f"{path}, row {number}: `question` must be a text that is not empty")
        if not isinstance(row.get("class_id"), str | int):
            raise BadDataError(f"{path}, row {number}: `class_id` must be a number or a text")
        found.setdefault(normalised(row["question"]), Question(row["question"], str(row["class_id"])))
    return list(found.values())


def read_pairs(path: Path) -> list[Pair]:
    """Rows `{"a", "b", "same"}` of JSONL, plain or gzip; a pair of one wording twice is left out."""
    found = []
    for number, row in _rows(path):
        if not isinstance(row.get("a"), str) or not isinstance(row.get("b"), str):
            raise BadDataError(f"{path}, row {number}: `a` and `b` must be texts")
        if row.get("same") not in (True, False):
            raise BadDataError(f"{path}, row {number}: `same` must be true or false")
        if normalised(row["a"]) != normalised(row["b"]):
            found.append(Pair(row["a"], row["b"], bool(row["same"])))
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise BadDataError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(text.decode("utf-8").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadDataError(f"{path}, row {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise BadDataError(f"{path}, row {number}: not a JSON object")
            yield number, row


def sample(questions: Sequence[Question], limit: int, multi_share: float, seed: int) -> list[Question]:
    """A stream of `limit` questions in random order, `multi_share` of them from classes with several wordings.

    Where the file has too few of one kind, the other kind fills up; a small file gives a shorter stream.
    """
    sizes = Counter(question.class_id for question in questions)
    rng = random.Random(f"trace:{seed}")
    multi = [question for question in questions if sizes[question.class_id] > 1]
    single = [question for question in questions if sizes[question.class_id] == 1]
    limit = min(limit, len(questions))
    num_multi = min(round(limit * multi_share), len(multi))
    num_multi = max(num_multi, limit - len(single))
    stream = rng.sample(multi, num_multi) + rng.sample(single, limit - num_multi)
    rng.shuffle(stream)
    return stream


def num_answerable(stream: Sequence[Question]) -> int:
    """Requests whose class was asked before: what a perfect cache would serve."""
    return len(stream) - len({question.class_id for question in stream})
