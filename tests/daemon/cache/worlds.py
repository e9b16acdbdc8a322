"""Made-up traffic whose truth is known: wordings, cosines and answers, no embedder and no model."""

from __future__ import annotations

import random
from dataclasses import dataclass

from semcache.daemon.cache.policy import Candidate, Verdict
from semcache.daemon.cache.verified import VerifiedPolicy

SCOPE = "user:a"
THINGS = "rain snow hail wind fog frost thunder mist dew sleet drizzle cloud storm ice sun heat".split()


@dataclass
class World:
    """Every request has one candidate; `error` is the chance that it is wrong, whatever it looks like."""

    error: float
    seed: int = 0
    score: float = 0.97
    scope: str = SCOPE

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.num_asked = 0

    def ask(self) -> tuple[str, Candidate, bool]:
        """A prompt, its candidate, and whether the candidate's answer is right."""
        self.num_asked += 1
        thing = self.random.choice(THINGS)
        place = "".join(chr(ord("a") + int(digit)) for digit in str(self.num_asked))
        stored, asked = f"Where does {thing} over {place} come from?", f"Where does the {thing} over {place} come from?"
        candidate = Candidate(f"e_{self.num_asked % 200}", self.scope, stored, f"about {thing}", self.score)
        return asked, candidate, self.random.random() >= self.error


@dataclass
class Run:
    """What a policy did with a world."""

    served: int = 0
    wrong: int = 0
    audits: int = 0
    wrong_audits: int = 0
    suspended_at: int | None = None


def live(policy: VerifiedPolicy, world: World, num: int) -> Run:
    """Requests one after another, each label brought at once."""
    run = Run()
    for _ in range(num):
        prompt, candidate, same = world.ask()
        verdict = policy.decide(prompt, [candidate], [world.scope])
        one(policy, prompt, verdict, same, run)
    return run


def one(policy: VerifiedPolicy, prompt: str, verdict: Verdict, same: bool, run: Run) -> None:
    [item] = verdict.considered
    if not verdict.serve:
        policy.learn(prompt, item, same, source="draft" if same else "equivalence", served=False)
        return
    run.served += 1
    run.wrong += not same
    if verdict.audit:
        run.audits += 1
        run.wrong_audits += not same
        policy.learn(prompt, item, same, source="audit", served=True)
        if policy.status(item.candidate.scope).state == "suspended":
            run.suspended_at = run.audits
