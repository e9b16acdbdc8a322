"""The trivia data set keeps the rules that make its scores mean something."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATASETS = ROOT / "semcache" / "assets" / "datasets"
SPLITS = ("train", "held_out", "held_out_wording")

# The held-out questions as they stood before the first model was trained. Whoever
# changes one changes this line in the open, and compares no score across the change.
HELD_OUT_SHA256 = "32fdf489bc71b99f8e50cdd8f3f6a3117705fc12234201b8b4601199a5e606e9"

Row = dict[str, str]


@pytest.fixture(scope="module")
def maker() -> Any:
    """The generator, imported from ``tools``, which is no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("make_trivia")
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    loaded: list[Row] = json.loads((DATASETS / "trivia.json").read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def near_misses() -> list[Row]:
    loaded: list[Row] = json.loads((DATASETS / "trivia_near_misses.json").read_text("utf-8"))
    return loaded


def family(row: Row) -> str:
    return row["group"].split("/")[0]


def by_group(rows: list[Row], split: str) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["split"] == split:
            found[row["group"]].append(row["question"])
    return dict(found)


def wording_of(maker: Any, rows: list[Row]) -> dict[str, str]:
    """Return the wording behind each question, found by filling every wording again."""
    facts = {fact.group: fact for facts in maker.FACTS.values() for fact in facts}
    filled = {
        (group, maker.fill(wording, fact)): wording
        for group, fact in facts.items()
        for wording in (
            *maker.trained_wordings(group.split("/")[0]),
            *maker.WORDINGS[group.split("/")[0]].reserved,
        )
    }
    return {row["question"]: filled[row["group"], row["question"]] for row in rows}


def test_every_row_has_the_four_fields(rows: list[Row]) -> None:
    for row in rows:
        assert list(row) == ["question", "answer", "group", "split"]
        assert all(isinstance(value, str) and value == value.strip() for value in row.values())
        assert all(row.values())
        assert row["split"] in SPLITS
        assert 1 <= len(row["answer"].split()) <= 6


def test_one_answer_per_group(rows: list[Row]) -> None:
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row["group"]].add(row["answer"])
    assert all(len(found) == 1 for found in answers.values())


def test_counts(maker: Any, rows: list[Row]) -> None:
    assert 5000 <= len(rows) <= 8000
    assert (DATASETS / "trivia.json").stat().st_size < 1_500_000
    assert len({row["group"] for row in rows}) >= 300
    assert len({family(row) for row in rows}) >= 12
    for questions in by_group(rows, "train").values():
        assert len(questions) >= 8
    for name, wordings in maker.WORDINGS.items():
        assert len(wordings.trained) >= 30, name
        assert len(wordings.reserved) >= 7, name


def test_every_group_is_in_every_split(rows: list[Row]) -> None:
    groups = {row["group"] for row in rows}
    for split in SPLITS:
        assert set(by_group(rows, split)) == groups


def test_no_question_stands_twice(maker: Any, rows: list[Row]) -> None:
    """Two equal texts would be a duplicate in one group and ambiguous in two."""
    counts = Counter(maker.normal(row["question"]) for row in rows)
    assert [text for text, count in counts.items() if count > 1] == []


def test_held_out_questions_are_no_reordered_train_questions(maker: Any, rows: list[Row]) -> None:
    train = {
        group: {maker.bag(question) for question in questions} for group, questions in by_group(rows, "train").items()
    }
    for row in rows:
        if row["split"] != "train":
            assert maker.bag(row["question"]) not in train[row["group"]], row["question"]


@pytest.mark.parametrize("split", ["held_out", "held_out_wording"])
def test_held_out_questions_differ_from_the_nearest_train_question(rows: list[Row], maker: Any, split: str) -> None:
    train = by_group(rows, "train")
    found = [
        max(maker.jaccard(row["question"], other) for other in train[row["group"]])
        for row in rows
        if row["split"] == split
    ]
    assert sum(found) / len(found) <= 0.6


def test_held_out_wordings_are_trained_with_other_facts(maker: Any, rows: list[Row]) -> None:
    wordings = wording_of(maker, rows)
    trained: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if row["split"] == "train":
            trained[family(row), wordings[row["question"]]].add(row["group"])
    for row in rows:
        if row["split"] == "held_out":
            others = trained[family(row), wordings[row["question"]]]
            assert row["group"] not in others
            assert len(others) >= 2, row["question"]


def test_reserved_wordings_are_trained_with_no_fact(maker: Any, rows: list[Row]) -> None:
    wordings = wording_of(maker, rows)
    for row in rows:
        reserved = wordings[row["question"]] in maker.WORDINGS[family(row)].reserved
        assert reserved == (row["split"] == "held_out_wording"), row["question"]


def test_near_misses_are_different_facts(rows: list[Row], near_misses: list[Row]) -> None:
    answers = {row["group"]: row["answer"] for row in rows}
    assert len(near_misses) >= 60
    for pair in near_misses:
        assert list(pair) == ["a", "b", "kind"]
        assert pair["kind"] in {"entity", "superlative", "year", "negation", "swap", "unit"}
        assert answers[pair["a"]] != answers[pair["b"]]
    assert len({frozenset((pair["a"], pair["b"])) for pair in near_misses}) == len(near_misses)
    assert len({pair[side] for pair in near_misses for side in ("a", "b")}) >= 60


def test_the_committed_files_are_what_the_generator_writes(maker: Any) -> None:
    trivia = (DATASETS / "trivia.json").read_bytes()
    pairs = (DATASETS / "trivia_near_misses.json").read_bytes()
    assert trivia == maker.render(maker.build()).encode("utf-8")
    assert pairs == maker.render(maker.near_miss_pairs()).encode("utf-8")


def test_nobody_moved_the_held_out_rows(rows: list[Row]) -> None:
    lines = sorted(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows if row["split"] != "train")
    digest = hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()
    assert digest == HELD_OUT_SHA256
