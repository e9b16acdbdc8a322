"""Prompts that come again, as in real use: the exact key first, with and without keys for verified other wordings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.semantic_trace.arms import Arm, Budget, Choice, Lesson, SemcacheArm
from benchmarks.semantic_trace.campaign import MakePolicy, Seed
from benchmarks.semantic_trace.neighbours import Neighbour, Ranks
from benchmarks.semantic_trace.run import NEVER, run
from benchmarks.semantic_trace.trace import Question, normalised

EXPONENT = 1.0
IDENTICAL, ALIAS = "identical", "alias"


class ExactFirstArm:
    """The exact tier in front of a policy; a wording that an audit found the same becomes a key with `aliases`."""

    def __init__(self, inner: Arm, stream: Sequence[Question], *, aliases: bool) -> None:
        self.name = inner.name
        self.budget = inner.budget
        self.num_neighbours = inner.num_neighbours
        self._inner = inner
        self._stream = stream
        self._aliases = aliases
        self._keys: dict[str, tuple[int, str]] = {}  # stored question, how it became a key

    def decide(self, asked: int, found: Sequence[Neighbour]) -> Choice:
        key = self._keys.get(normalised(self._stream[asked].text))
        if key is not None:
            return Choice(Neighbour(key[0], 1.0), key[1])
        return self._inner.decide(asked, found)

    def computed(self, asked: int, found: Sequence[Neighbour], choice: Choice) -> Lesson:
        lesson = self._inner.computed(asked, found, choice)
        text = normalised(self._stream[asked].text)
        if lesson.store:
            self._keys[text] = (asked, IDENTICAL)
        if choice.served is not None:
            same = self._stream[choice.served.at].class_id == self._stream[asked].class_id
            if same and self._aliases:
                self._keys[text] = (choice.served.at, ALIAS)
        return lesson


def replay(num_questions: int, num_requests: int, seed: int) -> list[int]:
    """Which question each request asks: the r-th most popular one with weight 1 / r."""
    rng = random.Random(f"zipf:{seed}")
    popularity = rng.sample(range(num_questions), num_questions)
    weights = [1.0 / (rank + 1) ** EXPONENT for rank in range(num_questions)]
    return rng.choices(popularity, weights, k=num_requests)


def measure(seed: Seed, budgets: Sequence[Budget], make_policy: MakePolicy) -> list[dict[str, Any]]:
    """Two rows for each budget, without aliases and with them."""
    asked = replay(len(seed.stream), len(seed.stream), seed.number)
    stream = [seed.stream[place] for place in asked]
    ranks = Ranks(seed.ranks.vectors[asked])
    return [
        one(stream, ranks, budget, make_policy, seed.number, aliases=aliases)
        for budget in budgets
        for aliases in (False, True)
    ]


def one(
    stream: Sequence[Question], ranks: Ranks, budget: Budget, make_policy: MakePolicy, seed: int, *, aliases: bool
) -> dict[str, Any]:
    """`repeats` are requests whose prompt the model has answered before: each has a key, unless it was evicted."""
    arm = ExactFirstArm(SemcacheArm(make_policy(budget, seed), stream, budget), stream, aliases=aliases)
    made = run(arm, stream, ranks, seed=seed)
    served = made.served != NEVER
    answered: set[str] = set()
    repeats = hits = 0
    for place, question in enumerate(stream):
        text = normalised(question.text)
        if text in answered:
            repeats += 1
            hits += bool(served[place])
        elif not served[place]:
            answered.add(text)
    reasons = np.array(made.reasons)
    is_exact = (reasons == IDENTICAL) | (reasons == ALIAS)
    return {
        "budget": {"max_error": budget.max_error, "max_hit_error": budget.max_hit_error},
        "seed": seed,
        "aliases": aliases,
        "requests": made.requests,
        "exact": int(is_exact.sum()),
        "by_alias": int((reasons == ALIAS).sum()),
        "semantic": int((served & ~is_exact).sum()),
        "wrong": made.num_wrong,
        "repeats": repeats,
        "repeats_hit": hits,
    }
