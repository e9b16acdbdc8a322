"""The bundled datasets as typed rows. Decides nothing: which rows may be trained on is written in the rows."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DATASETS = ("trivia", "class", "support", "handbook")
SPLITS = ("train", "held_out", "held_out_wording")
NEAR_MISSES = "trivia_near_misses.json"


@dataclass(frozen=True)
class Row:
    """One question of a dataset. Rows of one `group` ask for the same fact in different words."""

    dataset: str
    question: str
    answer: str
    group: str
    split: str
    context: str | None


@dataclass(frozen=True)
class NearMiss:
    """Two groups whose questions look alike and whose answers differ."""

    a: str
    b: str
    kind: str


def load_rows(folder: Path, names: Iterable[str] = DATASETS) -> list[Row]:
    """Every row of every dataset file that exists in `folder`."""
    rows: list[Row] = []
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        for raw in json.loads(path.read_text(encoding="utf-8")):
            if raw["split"] not in SPLITS:
                raise ValueError(f"{path}: unknown split {raw['split']!r}; known: {', '.join(SPLITS)}")
            context = raw.get("context") or None
            rows.append(Row(name, raw["question"], raw["answer"], str(raw["group"]), raw["split"], context))
    if not rows:
        raise FileNotFoundError(f"no dataset in {folder}; expected one of {', '.join(f'{n}.json' for n in names)}")
    return rows


def load_near_misses(folder: Path) -> list[NearMiss]:
    """The labelled near-miss pairs, or none where the file is absent."""
    path = folder / NEAR_MISSES
    if not path.exists():
        return []
    return [NearMiss(str(p["a"]), str(p["b"]), p.get("kind", "")) for p in json.loads(path.read_text(encoding="utf-8"))]


def dataset_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every dataset file, for the model card."""
    paths = [folder / f"{name}.json" for name in DATASETS]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.exists()}


def train_rows(rows: Iterable[Row]) -> list[Row]:
    """The only rows the tokenizer and the weights ever see."""
    return [row for row in rows if row.split == "train"]


def by_context(rows: Iterable[Row]) -> dict[str | None, list[Row]]:
    """Rows grouped by the system message they share."""
    grouped: defaultdict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row.context].append(row)
    return dict(grouped)
