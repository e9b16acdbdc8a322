"""The compared ways to decide. Each sees one stream and what it stored itself, and is told only what it paid for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.semantic_trace.neighbours import Neighbour
from benchmarks.semantic_trace.trace import Question
from benchmarks.semantic_trace.vcache import Grid, Observations
from semcache.daemon.cache.policy import Candidate, Policy, Verdict

SCOPE = "user/benchmark"
NUM_CANDIDATES = 5
# Which candidates of a computed answer get a label, as in the daemon.
MIN_LABELLED_SCORE = 0.6
MAX_LABELLED = 3


@dataclass(frozen=True)
class Budget:
    """What the user allows; None for an arm that does not know the notion."""

    max_error: float | None = None  # wrong per request
    max_hit_error: float | None = None  # wrong per hit


@dataclass(frozen=True)
class Choice:
    """What an arm does with one request."""

    served: Neighbour | None
    reason: str = ""
    offers_draft: bool = False  # not served, and the candidate's answer goes to the model as a draft
    audit: bool = False  # served, and computed again later
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Lesson:
    """What follows from an answer that was computed."""

    store: bool = False
    explored: bool = False  # a candidate got a label


class Arm(Protocol):
    """`decide` before the truth, `computed` after the model has answered (also after an audit)."""

    name: str
    budget: Budget
    num_neighbours: int

    def decide(self, asked: int, found: Sequence[Neighbour]) -> Choice: ...

    def computed(self, asked: int, found: Sequence[Neighbour], choice: Choice) -> Lesson: ...


class NoneArm:
    """Compute everything."""

    name = "none"
    budget = Budget()
    num_neighbours = 0

    def decide(self, asked: int, found: Sequence[Neighbour]) -> Choice:
        return Choice(None)

    def computed(self, asked: int, found: Sequence[Neighbour], choice: Choice) -> Lesson:
        return Lesson()


class StaticArm:
    """Serve the nearest from a fixed cosine on, store what is not served."""

    num_neighbours = 1

    def __init__(self, threshold: float) -> None:
        self.name = f"static:{threshold:.2f}"
        self.budget = Budget()
        self.threshold = threshold

    def decide(self, asked: int, found: Sequence[Neighbour]) -> Choice:
        return Choice(found[0] if found and found[0].score >= self.threshold else None)

    def computed(self, asked: int, found: Sequence[Neighbour], choice: Choice) -> Lesson:
        return Lesson(store=True)


class VCacheArm:
    """Serve by the nearest entry's own threshold, otherwise explore: label it, store the prompt if it differs."""

    num_neighbours = 1

    def __init__(self, name: str, stream: Sequence[Question], max_error: float, grid: Grid, seed: int) -> None:
        self.name = name
        self.budget = Budget(max_error=max_error)
        self._stream = stream
        self._max_error = max_error
        self._grid = grid
        self._observations: dict[int, Observations] = {}
        self._random = random.Random(f"vcache:{seed}")

    def decide(self, asked: int, found: Sequence[Neighbour]) -> Choice:
        if not found:
            return Choice(None)
        entry = self._observations.setdefault(found[0].at, Observations())
        explores = self._random.random() <= entry.explore_probability(found[0].score, self._max_error, self._grid)
        return Choice(None if explores else found[0])

    def computed(self, asked: int, found: Sequence[Neighbour], choice: Choice) -> Lesson:
        if not found:
            return Lesson(store=True)
        same = self._stream[asked].class_id == self._stream[found[0].at].class_id
        self._observations[found[0].at].add(found[0].score, same)
        return Lesson(store=not same, explored=True)


class SemcacheArm:
    """The daemon's own policy. A stored answer is the class as text, so that agreement of neighbours is visible."""

    name = "semcache"
    num_neighbours = NUM_CANDIDATES

    def __init__(
        self, policy: Policy, stream: Sequence[Question], budget: Budget, *, only_audits_from: int | None = None
    ) -> None:
        """From the question `only_audits_from` on, computed answers give no label: only audits do."""
        self.policy = policy
        self._only_audits_from = len(stream) if only_audits_from is None else only_audits_from
        self.budget = budget
        self._stream = stream
        self._learn: Any = getattr(policy, "learn", None)  # a fixed threshold learns nothing

    def decide(self, asked: int, found: Sequence[Neighbour]) -> Choice:
        candidates = [
            Candidate(str(at), SCOPE, self._stream[at].text, self._stream[at].class_id, score) for at, score in found
        ]
        verdict = self.policy.decide(self._stream[asked].text, candidates, [SCOPE])
        chosen = verdict.candidate
        if verdict.serve and chosen is not None:
            served = Neighbour(int(chosen.entry_id), chosen.score)
            return Choice(served, verdict.reason, audit=verdict.audit, verdict=verdict)
        return Choice(None, verdict.reason, offers_draft=chosen is not None, verdict=verdict)

    def computed(self, asked: int, found: Sequence[Neighbour], choice: Choice) -> Lesson:
        verdict = choice.verdict
        assert verdict is not None
        if choice.served is not None:
            self._audited(asked, choice.served, verdict)
            return Lesson()
        return Lesson(store=True, explored=self._labelled(asked, verdict))

    def _labelled(self, asked: int, verdict: Verdict) -> bool:
        """The computed answer says of each candidate whether its answer was the same: as a draft, or compared."""
        if self._learn is None or asked >= self._only_audits_from:
            return False
        question = self._stream[asked]
        near = [item for item in verdict.considered if item.candidate.score >= MIN_LABELLED_SCORE][:MAX_LABELLED]
        for item in near:
            same = item.candidate.answer == question.class_id
            is_draft = verdict.candidate is not None and item.candidate.entry_id == verdict.candidate.entry_id
            source = "draft" if same and is_draft else "equivalence"
            self._learn(question.text, item, same, source=source, served=False)
        return bool(near)

    def _audited(self, asked: int, served: Neighbour, verdict: Verdict) -> None:
        """An entry that served wrongly stays right for its own words: the policy demotes it, and the pair is marked."""
        if self._learn is None:
            return
        question = self._stream[asked]
        item = next(item for item in verdict.considered if item.candidate.entry_id == str(served.at))
        same = item.candidate.answer == question.class_id
        self._learn(question.text, item, same, source="audit", served=True)
