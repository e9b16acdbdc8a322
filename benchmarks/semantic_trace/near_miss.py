"""Labelled pairs: one wording is stored, the other asked. Serving across a pair that is not the same is the failure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.semantic_trace.arms import Budget, SemcacheArm
from benchmarks.semantic_trace.campaign import DEFAULT, LOOSE_HIT_ERROR, Embed, MakePolicy
from benchmarks.semantic_trace.neighbours import Ranks, Stored
from benchmarks.semantic_trace.run import NEVER, Run, run
from benchmarks.semantic_trace.trace import Pair, Question, normalised


def measure(
    pairs: Sequence[Pair], questions: Sequence[Question], stream: Sequence[Question], limit: int, embed: Embed,
    make_policy: MakePolicy, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The worst of three states at default budgets: fresh, after the stream, and after it without further labels."""
    chosen = choose(pairs, limit, seed)

    def ask(before: Sequence[Question], budget: Budget, learns: bool, state: str) -> dict[str, Any]:
        return _ask(chosen, questions, before, embed, make_policy, budget, seed, learns=learns, state=state)

    states = [
        ask((), DEFAULT, True, "fresh"),
        ask(stream, DEFAULT, True, "after the trace"),
        ask(stream, DEFAULT, False, "no more labels"),
    ]
    # Not at defaults, so it does not count: what only the bound per request lets through.
    loose = ask(stream, Budget(DEFAULT.max_error, LOOSE_HIT_ERROR), True, "no bound per hit")
    worst = max(states, key=lambda state: state["served_wrongly"] / max(state["pairs"], 1))
    return {key: value for key, value in worst.items() if key != "state"} | {
        "worst": worst["state"],
        "states": [*states, loose],
    }


def choose(pairs: Sequence[Pair], limit: int, seed: int) -> list[Pair]:
    """Up to `limit` pairs of each kind, mixed."""
    rng = random.Random(f"pairs:{seed}")
    chosen = []
    for same in (False, True):
        kind = [pair for pair in pairs if pair.same is same]
        chosen += rng.sample(kind, min(limit, len(kind)))
    rng.shuffle(chosen)
    return chosen


def label(pairs: Sequence[Pair], class_of: Mapping[str, str]) -> tuple[list[Question], list[Question], list[bool]]:
    """Stored questions, asked questions and whether each asked one is a paraphrase of its own stored one.

    What a person said about the pair comes before what the classes say.
    """
    stored: dict[str, Question] = {}
    asked, is_paraphrase = [], []
    for number, pair in enumerate(pairs):
        key = normalised(pair.a)
        a = stored.setdefault(key, Question(pair.a, class_of.get(key, f"stored:{key}")))
        known = class_of.get(normalised(pair.b), f"asked:{number}")
        other = f"asked:{number}" if known == a.class_id else known
        asked.append(Question(pair.b, a.class_id if pair.same else other))
        is_paraphrase.append(pair.same)
    return list(stored.values()), asked, is_paraphrase


def _ask(
    pairs: Sequence[Pair], questions: Sequence[Question], stream: Sequence[Question], embed: Embed,
    make_policy: MakePolicy, budget: Budget, seed: int, *, learns: bool, state: str,
) -> dict[str, Any]:  # fmt: skip
    class_of = {normalised(question.text): question.class_id for question in questions}
    # A wording that is stored as it is asked would be an exact hit and test nothing.
    known = {normalised(question.text) for question in stream} | {normalised(pair.a) for pair in pairs}
    stored, asked, is_paraphrase = label([pair for pair in pairs if normalised(pair.b) not in known], class_of)
    everything = [*stream, *stored, *asked]
    ranks = Ranks(embed([question.text for question in everything]))
    arm = SemcacheArm(make_policy(budget, seed), everything, budget)
    index = Stored(ranks)
    run(arm, everything, ranks, seed=seed, span=range(len(stream)), stored=index)
    first = len(stream) + len(stored)
    for at in range(len(stream), first):
        index.add(at)
    made = run(
        arm, everything, ranks, seed=seed, span=range(first, len(everything)), stored=index, stores=False, learns=learns
    )
    return {"state": state} | count(made, is_paraphrase)


def count(made: Run, is_paraphrase: Sequence[bool]) -> dict[str, int]:
    """The report's counts; `served_wrongly` counts any wrong answer to the wording of a pair that is not the same."""
    served = (made.served != NEVER).tolist()
    wrong, offered = made.wrong.tolist(), made.offered.tolist()
    return {
        "pairs": sum(not same for same in is_paraphrase),
        "served_wrongly": sum(w and not same for w, same in zip(wrong, is_paraphrase, strict=True)),
        "paraphrases": sum(is_paraphrase),
        "served": sum(s and same for s, same in zip(served, is_paraphrase, strict=True)),
        "draft_offered": sum(o and same for o, same in zip(offered, is_paraphrase, strict=True)),
    }
