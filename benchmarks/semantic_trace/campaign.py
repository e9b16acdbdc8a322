"""All arms over all seeds: the same vectors and the same order for every arm of a seed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.semantic_trace.arms import Arm, Budget, NoneArm, SemcacheArm, StaticArm, VCacheArm
from benchmarks.semantic_trace.neighbours import Ranks
from benchmarks.semantic_trace.run import Run, run
from benchmarks.semantic_trace.trace import Question, num_answerable, sample
from benchmarks.semantic_trace.vcache import fine_grid, published_grid
from semcache.config import SemanticConfig
from semcache.daemon.cache.policy import Policy

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
MakePolicy = Callable[[Budget, int], Policy]

DEFAULT_BUDGETS = (0.005, 0.01, 0.02, 0.05)
DEFAULT = Budget(SemanticConfig.max_error, SemanticConfig.max_hit_error)
# With it only the bound on wrong answers per request binds, which is the one that vCache knows.
LOOSE_HIT_ERROR = 0.5
THRESHOLDS = tuple(round(0.80 + 0.01 * step, 2) for step in range(20))
ARMS = ("none", "static", "vcache", "vcache_grid", "semcache")


@dataclass(frozen=True)
class Settings:
    """What decides every figure, together with the data."""

    limit: int
    seeds: int
    multi_share: float = 0.7
    budgets: tuple[float, ...] = DEFAULT_BUDGETS
    thresholds: tuple[float, ...] = THRESHOLDS
    audit_rate: float = SemanticConfig.audit_rate
    arms: tuple[str, ...] = ARMS


@dataclass(frozen=True)
class Seed:
    """One stream, embedded and ranked."""

    number: int
    stream: list[Question]
    ranks: Ranks

    @property
    def num_answerable(self) -> int:
        return num_answerable(self.stream)


def verified(audit_rate: float) -> MakePolicy:
    """The daemon's verified policy, with evidence in memory only."""

    def make(budget: Budget, seed: int) -> Policy:
        from semcache.daemon.cache.evidence import EvidenceBook
        from semcache.daemon.cache.verified import VerifiedPolicy

        assert budget.max_error is not None
        assert budget.max_hit_error is not None
        policy: Policy = VerifiedPolicy(
            EvidenceBook(None), max_error=budget.max_error, max_hit_error=budget.max_hit_error,
            audit_rate=audit_rate, seed=seed,
        )  # fmt: skip
        return policy

    return make


def open_seed(questions: Sequence[Question], settings: Settings, number: int, embed: Embed) -> Seed:
    stream = sample(questions, settings.limit, settings.multi_share, number)
    return Seed(number, stream, Ranks(embed([question.text for question in stream])))


def arms_of(seed: Seed, settings: Settings, make_policy: MakePolicy) -> Iterable[Arm]:
    """Fresh arms for one seed, made as they are needed."""
    if "none" in settings.arms:
        yield NoneArm()
    if "static" in settings.arms:
        yield from (StaticArm(threshold) for threshold in settings.thresholds)
    for name, grid in (("vcache", published_grid()), ("vcache_grid", fine_grid())):
        if name in settings.arms:
            yield from (VCacheArm(name, seed.stream, budget, grid, seed.number) for budget in settings.budgets)
    if "semcache" in settings.arms:
        for budget in semcache_budgets(settings.budgets):
            yield SemcacheArm(make_policy(budget, seed.number), seed.stream, budget)


def semcache_budgets(budgets: Sequence[float]) -> list[Budget]:
    """Each budget with the default bound on wrong answers per hit, and with one that does not bind."""
    hit_errors = (DEFAULT.max_hit_error, LOOSE_HIT_ERROR)
    return [Budget(budget, hit_error) for hit_error in hit_errors for budget in budgets]


def run_seed(seed: Seed, settings: Settings, make_policy: MakePolicy) -> list[Run]:
    runs = []
    for arm in arms_of(seed, settings, make_policy):
        started = time.perf_counter()
        runs.append(run(arm, seed.stream, seed.ranks, seed=seed.number))
        say(f"seed {seed.number}  {_words(runs[-1])}  {time.perf_counter() - started:.1f} s")
    return runs


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


def _words(made: Run) -> str:
    budget = f" {made.budget.max_error:g}" if made.budget.max_error is not None else ""
    budget += f"/{made.budget.max_hit_error:g}" if made.budget.max_hit_error is not None else ""
    return f"{made.arm}{budget}: {made.num_served} hits, {made.num_wrong} wrong"


def reference(seeds: Sequence[Seed], thresholds: Sequence[float]) -> list[dict[str, float | None]]:
    """A fixed cosine where every question is stored, also a served one: what the data itself allows."""
    rows: list[dict[str, float | None]] = []
    num = sum(len(seed.stream) for seed in seeds)
    for threshold in thresholds:
        served = wrong = 0
        for seed in seeds:
            for asked, (at, score) in enumerate(zip(seed.ranks.at[:, 0], seed.ranks.scores[:, 0], strict=True)):
                if at >= 0 and score >= threshold:
                    served += 1
                    wrong += seed.stream[at].class_id != seed.stream[asked].class_id
        rows.append(
            {
                "threshold": threshold,
                "served_share": served / num,
                "wrong_per_request": wrong / num,
                "wrong_per_hit": wrong / served if served else None,
            }
        )
    return rows
