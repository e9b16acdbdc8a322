"""Reading labelled questions and drawing streams from them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.semantic_trace.trace import (
    BadDataError,
    Question,
    normalised,
    num_answerable,
    read_pairs,
    read_questions,
    sample,
)

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "datasets"


def write(path: Path, rows: list[object]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_exact_repeats_are_left_out(tmp_path: Path, name: str) -> None:
    rows = [{"question": "What is  Rust?", "class_id": 1}, {"question": "what is rust?", "class_id": 1}]
    path = write(tmp_path / name, [*rows, {"question": "What is rust\u2028?", "class_id": "b"}])
    assert read_questions(path) == [Question("What is  Rust?", "1"), Question("What is rust\u2028?", "b")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": " ", "class_id": 1}, "`question`"),
        ({"question": "a"}, "`class_id`"),
        ([1], "not a JSON object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, reason: str) -> None:
    path = write(tmp_path / "q.jsonl", [{"question": "a", "class_id": 1}, row])
    with pytest.raises(BadDataError, match=f"row 2: .*{reason}"):
        read_questions(path)


def test_text_that_is_not_json_or_not_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": ')
    with pytest.raises(BadDataError, match="row 1: not JSON"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl.gz").write_text("plain")
    with pytest.raises(BadDataError, match="cannot be read"):
        read_questions(tmp_path / "q.jsonl.gz")


def test_pairs_of_one_wording_are_left_out(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y", "same": False}, {"a": "x ", "b": "X", "same": True}]
    assert [pair.b for pair in read_pairs(write(tmp_path / "p.jsonl", rows))] == ["y"]
    with pytest.raises(BadDataError, match="row 1: `same`"):
        read_pairs(write(tmp_path / "bad.jsonl", [{"a": "x", "b": "y", "same": "no"}]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=30),
    st.integers(1, 80),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_a_stream_keeps_its_promises(sizes: list[int], limit: int, multi_share: float, seed: int) -> None:
    questions = [Question(f"{c}/{n}", str(c)) for c, size in enumerate(sizes) for n in range(size)]
    stream = sample(questions, limit, multi_share, seed)
    assert len(stream) == min(limit, len(questions))
    assert len(set(stream)) == len(stream)
    assert set(stream) <= set(questions)
    assert stream == sample(questions, limit, multi_share, seed)
    assert num_answerable(stream) == sum(n - 1 for n in Counter(q.class_id for q in stream).values())
    size_of = Counter(question.class_id for question in questions)
    num_multi = sum(size_of[question.class_id] > 1 for question in stream)
    kinds = Counter(size_of[question.class_id] > 1 for question in questions)
    wanted = round(len(stream) * multi_share)
    if wanted <= kinds[True] and len(stream) - wanted <= kinds[False]:
        assert num_multi == wanted


def test_two_seeds_differ() -> None:
    questions = [Question(str(n), str(n // 2)) for n in range(100)]
    assert sample(questions, 50, 0.7, 0) != sample(questions, 50, 0.7, 1)


def test_the_public_questions_give_the_known_share() -> None:
    path = FOLDER / "qqp_dev_questions.jsonl.gz"
    if not path.exists():
        pytest.skip("the labelled questions are not on this machine")
    stream = sample(read_questions(path), 10_000, 0.7, 0)
    assert len({normalised(question.text) for question in stream}) == 10_000
    assert num_answerable(stream) / 10_000 == pytest.approx(0.183, abs=0.005)
