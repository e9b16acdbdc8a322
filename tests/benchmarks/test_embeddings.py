"""Vectors are made once, in batches, and survive a damaged file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.embeddings import SAVE_EVERY, Vectors, embed_all


class Counting:
    """A stand-in for the model that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> Vectors:
        self.asked += texts
        return np.array([[len(text), 1.0, text.count("a")] for text in texts], dtype=np.float32)


def test_order_length_and_one_vector_for_each_text(tmp_path: Path) -> None:
    encode = Counting()
    texts = ["banana", "a", "banana", ""]
    vectors = embed_all(texts, tmp_path, model="m", encode=encode)
    assert sorted(encode.asked) == ["", "a", "banana"]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0)
    assert (vectors[0] == vectors[2]).all()
    assert vectors[1] == pytest.approx(np.array([1.0, 1.0, 1.0]) / np.sqrt(3))


def test_known_texts_are_not_made_again_and_models_are_apart(tmp_path: Path) -> None:
    first = embed_all(["x", "y"], tmp_path, model="m", encode=Counting())
    encode = Counting()
    again = embed_all(["y", "z", "x"], tmp_path, model="m", encode=encode)
    assert encode.asked == ["z"]
    assert (again[[2, 0]] == first).all()
    other = Counting()
    embed_all(["x"], tmp_path, model="other", encode=other)
    assert other.asked == ["x"]


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    first = embed_all(["x", "y"], tmp_path, model="m", encode=Counting())
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-7])
    encode = Counting()
    assert (embed_all(["x", "y"], tmp_path, model="m", encode=encode) == first).all()
    assert sorted(encode.asked) == ["x", "y"]


def test_a_stopped_run_loses_little(tmp_path: Path) -> None:
    class Stopped(Counting):
        def __call__(self, texts: list[str]) -> Vectors:
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(texts)

    texts = [f"text {number:05}" for number in range(SAVE_EVERY + 10)]
    with pytest.raises(KeyboardInterrupt):
        embed_all(texts, tmp_path, model="m", encode=Stopped())
    encode = Counting()
    assert embed_all(texts, tmp_path, model="m", encode=encode).shape == (SAVE_EVERY + 10, 3)
    assert len(encode.asked) == 10


def test_nothing_asked_nothing_made(tmp_path: Path) -> None:
    assert embed_all([], tmp_path, model="m", encode=Counting()).shape[0] == 0
