"""A dataset file as rows of question and expected answer, whatever its layout; nothing in it is skipped silently.

`formats.py` cuts the text into records, `layouts.py` makes rows of a record. Knows nothing about daemons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from semcache.errors import DatasetError
from semcache.replay.fields import Fields
from semcache.replay.formats import split_records
from semcache.replay.layouts import RowReader

# The folder also holds files about these, which are no datasets themselves.
BUNDLED = ("trivia.json", "class.json", "support.json", "handbook.json")


@dataclass(frozen=True)
class Row:
    """One question of a dataset. `number` is its place among the rows of the file, from 1."""

    question: str
    answer: str | None
    group: str | None
    context: str | None
    split: str | None
    number: int
    # Further accepted answers, where the file lists several.
    also: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every answer that counts as correct; empty when the file expects none."""
        return () if self.answer is None else (self.answer, *self.also)


@dataclass(frozen=True)
class Dataset:
    """A file as it was read: `sha256` is over its bytes."""

    path: Path
    sha256: str
    rows: list[Row]

    @property
    def name(self) -> str:
        return self.path.stem


def load_dataset(path_or_name: str, mapping: Mapping[str, str] | None = None) -> Dataset:
    """Read every row of a file or of a bundled dataset; raises DatasetError with file, row and reason.

    `mapping` names the file's own field for `question`, `answer`, `context`, `group` or `split`.
    """
    path = _find(path_or_name)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    reader = RowReader(path, mapping or {})
    text = _decoded(raw, path)
    found = (fields for record in split_records(text, path) for fields in reader.rows(record))
    rows = [_row(fields, number) for number, fields in enumerate(found, start=1)]
    reader.check_mapping_was_used()
    if not rows:
        raise DatasetError(f"{path}: holds no rows")
    return Dataset(path, hashlib.sha256(raw).hexdigest(), rows)


def bundled() -> list[str]:
    """The names of the datasets that come with the package."""
    folder = resources.files("semcache") / "assets" / "datasets"
    return [name for name in BUNDLED if (folder / name).is_file()]


def _find(path_or_name: str) -> Path:
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; name a file in it")
    if path.exists():
        return path
    if path_or_name in bundled():
        return Path(str(resources.files("semcache"))) / "assets" / "datasets" / path_or_name
    raise DatasetError(f"no file {path_or_name}, and no bundled dataset of that name ({', '.join(bundled())})")


def _decoded(raw: bytes, path: Path) -> str:
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; convert it, for example with "
            "`iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error
    if not text.strip():
        raise DatasetError(f"{path}: the file is empty")
    return text


def _row(fields: Fields, number: int) -> Row:
    return Row(
        question=fields.question,
        answer=fields.answers[0] if fields.answers else None,
        group=fields.group,
        context=fields.context,
        split=fields.split,
        number=number,
        also=fields.answers[1:],
    )
