"""Whether a differently worded prompt's stored answer may be served. Scope and identity were settled before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from semcache.daemon.cache.features import differences
from semcache.daemon.cache.marks import MarkedPairs


@dataclass(frozen=True)
class Candidate:
    """A stored prompt near the asked one: a readable scope, same model, context and parameters."""

    entry_id: str
    scope: str
    prompt: str
    answer: str
    score: float  # cosine, higher is nearer


@dataclass(frozen=True)
class Considered:
    """One candidate and what the policy made of it; unknown is None."""

    candidate: Candidate
    reason: str  # "similar" when it may be served, else the first reason against it
    features: Mapping[str, float] = field(default_factory=dict)
    p_correct: float | None = None
    chosen: bool = False  # the one that was or would have been served: its label counts for the budgets


@dataclass(frozen=True)
class Verdict:
    """What to serve and the first reason in words. `candidate` is the one the verdict is about, served or not."""

    serve: bool
    reason: str
    candidate: Candidate | None
    considered: tuple[Considered, ...] = ()  # in order of score
    audit: bool = False  # served, and its answer is to be computed again when the engine is idle


class Policy(Protocol):
    """Decides over candidates in order of score; must be fast, it runs on every miss."""

    name: str

    def decide(
        self, prompt: str, candidates: Sequence[Candidate], scopes: Sequence[str], *, preview: bool = False
    ) -> Verdict:
        """`scopes` are all that the request reads, also those without a candidate; a preview leaves no trace."""
        ...


class ThresholdPolicy:
    """Serve the best candidate whose cosine reaches the threshold and whose wording shows no telling difference."""

    name = "threshold"

    def __init__(self, threshold: float, marks: MarkedPairs | None = None) -> None:
        self.threshold = threshold
        self._marks = marks or MarkedPairs()

    def decide(
        self, prompt: str, candidates: Sequence[Candidate], scopes: Sequence[str], *, preview: bool = False
    ) -> Verdict:
        if not candidates:
            return Verdict(False, "no_candidate", None)
        considered = tuple(Considered(candidate, self._reason(prompt, candidate)) for candidate in candidates)
        for item in considered:
            if item.reason == "similar":
                return Verdict(True, item.reason, item.candidate, considered)
        return Verdict(False, considered[0].reason, candidates[0], considered)

    def _reason(self, prompt: str, candidate: Candidate) -> str:
        if candidate.score < self.threshold:
            return "policy:threshold"
        is_marked = self._marks.holds(candidate.scope, prompt, candidate.prompt)
        if is_marked is not False:
            return "policy:marked_wrong" if is_marked else "unreadable"
        telling = differences(prompt, candidate.prompt)
        return f"policy:{telling[0]}" if telling else "similar"


class OffPolicy:
    """Never serve; the search still finds neighbours for the receipt."""

    name = "off"

    def decide(
        self, prompt: str, candidates: Sequence[Candidate], scopes: Sequence[str], *, preview: bool = False
    ) -> Verdict:
        considered = tuple(Considered(candidate, "disabled") for candidate in candidates)
        return Verdict(False, "disabled", candidates[0] if candidates else None, considered)
