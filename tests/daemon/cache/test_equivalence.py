"""Two answers to two wordings: same, other, or nobody knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from semcache.daemon.cache.equivalence import judge_prompt, make_equivalence, read_judgement, text_equivalence
from semcache.daemon.cache.features import _read


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Paris.", "Paris", True),
        ("It is  Paris.\n", "It is Paris", True),
        ("a + b", "a - b", None),
        ("Paris", "London", False),
        ("It was built in 1889.", "It was built in 1899.", False),
        ("You can refund it.", "You can not refund it.", False),
        ("The capital is Paris.", "The capital is Lyon.", False),
        ("Click the link below the form to reset it.", "Use the link in the form for a reset.", None),
        ("", "", True),
        ("", "something", None),
    ],
)
def test_text(a: str, b: str, same: bool | None) -> None:
    assert text_equivalence(a, b) is same
    assert text_equivalence(b, a) is same


class _Angle:
    """Answers on a circle: the cosine is what the test says."""

    max_tokens = 20

    def num_tokens(self, text: str) -> int:
        return len(text.split())

    def embed(self, text: str) -> Any:
        angle = {"open": 0.0, "near": 0.1, "between": 0.7, "far": 1.5}[text.rsplit(maxsplit=1)[-1]]
        return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


def test_embedding_decides_only_what_is_clear() -> None:
    embedder: Any = _Angle()
    equivalent = make_equivalence("embedding", lambda: embedder)
    first = "the door of the house is open"
    assert equivalent(first, "the door of the house is near") is True
    assert equivalent(first, "the door of the house is between") is None
    assert equivalent(first, "the door of the house is far") is False
    assert equivalent(first, "door 7 is near") is False, "a number is telling whatever the embedding says"
    assert equivalent(first, "the door " + "house " * 30 + "near") is None, "too long for the embedder"
    assert make_equivalence("embedding", lambda: None)(first, "the door of the house is near") is None


@pytest.mark.parametrize(
    ("reply", "same"),
    [("Yes.", True), (" no, they differ", False), ("**Yes**", True), ("Nobody", None), ("", None), ("maybe", None)],
)
def test_a_judges_reply_that_is_not_understood_is_no_label(reply: str, same: bool | None) -> None:
    assert read_judgement(reply) is same


def test_the_judge_sees_question_and_both_answers() -> None:
    prompt = judge_prompt("What is rain?", "water", "drops")
    assert all(part in prompt for part in ("What is rain?", "water", "drops"))


def test_no_answer_stays_in_memory_because_it_was_compared() -> None:
    _read.cache_clear()
    assert text_equivalence("It was built in 1889.", "It was built in 1899.") is False
    assert _read.cache_info().currsize == 0
