"""File text to records: JSON with its wrappers, JSONL, CSV. Every record knows how to say where it stands.

Knows nothing about what a record means; `layouts.py` does.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semcache.errors import DatasetError

# Keys under which a JSON object keeps its list of rows, compared without case.
WRAPPERS = ("questions", "data", "entries", "intents")
MAX_CSV_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Record:
    """One element of the file before its layout is known; `where` is "row 3" or "line 17"."""

    value: Any
    where: str


def split_records(text: str, path: Path) -> Iterator[Record]:
    """The records of a whole file."""
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise DatasetError(f"{path}: the name must say the format: {', '.join(SUFFIXES)}")
    return parse(text, path)


def _json(text: str, path: Path) -> Iterator[Record]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _jsonl(text, path)  # JSON lines under the name .json are common
        raise DatasetError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; is the file cut off?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot read this JSON: {error}") from error
    items = tree if isinstance(tree, list) else _unwrapped(tree, path)
    return (Record(item, f"row {number}") for number, item in enumerate(items, start=1))


def _unwrapped(tree: Any, path: Path) -> list[Any]:
    """The list inside a wrapper object; one without is a single row, accepted or refused by `layouts.py`."""
    if not isinstance(tree, dict):
        raise DatasetError(f"{path}: expected a list of rows, found {json_kind(tree)}")
    lists = {key: value for key, value in tree.items() if key.casefold() in WRAPPERS and isinstance(value, list)}
    if len(lists) > 1:
        raise DatasetError(f"{path}: holds rows under {' and '.join(map(repr, lists))}; keep one of them")
    return next(iter(lists.values())) if lists else [tree]


def _jsonl(text: str, path: Path) -> Iterator[Record]:
    # Not splitlines(): it also cuts at U+2028 and friends, which JSON may carry unescaped inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path}, line {number}: not valid JSON at column {error.colno}: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path}, line {number}: cannot read this JSON: {error}") from error
        yield Record(value, f"line {number}")


def _csv(text: str, path: Path) -> Iterator[Record]:
    # The limit is one for the whole process; a prompt may be longer than the default of 128 KiB.
    csv.field_size_limit(MAX_CSV_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if not cells:
                pass  # a blank line is no row
            elif header is None:
                header = _header(cells, path)
            elif len(cells) != len(header):
                raise DatasetError(f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}")
            else:
                yield Record(dict(zip(header, cells, strict=True)), f"line {line}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{path}, line {line}: not valid CSV: {error}") from error


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DatasetError(f"{path}, line 1: column {twice[0]!r} occurs twice")
    return names


def json_kind(value: object) -> str:
    """What a JSON value is, in words for an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "an object"


_PARSERS: dict[str, Callable[[str, Path], Iterator[Record]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
}
SUFFIXES = tuple(_PARSERS)
