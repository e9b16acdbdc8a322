"""Whether a differently worded prompt's stored answer may be served. Scope and identity were settled before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from semcache.daemon.cache.features import differences


@dataclass(frozen=True)
class Candidate:
    """A stored prompt near the asked one: same scope, model, context and parameters."""

    entry_id: str
    prompt: str
    score: float  # cosine, higher is nearer


@dataclass(frozen=True)
class Verdict:
    """What to serve and the first reason in words. `candidate` is the nearest one looked at, served or not."""

    serve: bool
    reason: str
    candidate: Candidate | None


class Policy(Protocol):
    """Decides over candidates in order of score; must be fast, it runs on every miss."""

    name: str

    def decide(self, prompt: str, candidates: Sequence[Candidate]) -> Verdict: ...


class ThresholdPolicy:
    """Serve the best candidate whose cosine reaches the threshold and whose wording shows no telling difference."""

    name = "threshold"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def decide(self, prompt: str, candidates: Sequence[Candidate]) -> Verdict:
        if not candidates:
            return Verdict(False, "no_candidate", None)
        first_refusal = ""
        for candidate in candidates:
            if candidate.score < self.threshold:
                break
            telling = differences(prompt, candidate.prompt)
            if not telling:
                return Verdict(True, "similar", candidate)
            first_refusal = first_refusal or f"policy:{telling[0]}"
        return Verdict(False, first_refusal or "policy:threshold", candidates[0])


class OffPolicy:
    """Never serve; the search still finds neighbours for the receipt."""

    name = "off"

    def decide(self, prompt: str, candidates: Sequence[Candidate]) -> Verdict:
        return Verdict(False, "disabled", candidates[0] if candidates else None)


def make_policy(name: str, *, threshold: float) -> Policy:
    """The policy of `semantic.policy`; the config has checked the name."""
    policies: dict[str, Policy] = {"threshold": ThresholdPolicy(threshold), "off": OffPolicy()}
    return policies[name]
