"""One arm over one stream: what it served, what was wrong, what it paid."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.semantic_trace.arms import Arm, Budget
from benchmarks.semantic_trace.intervals import wilson
from benchmarks.semantic_trace.neighbours import Ranks, Stored
from benchmarks.semantic_trace.trace import Question

NEVER = -1


@dataclass
class Run:
    """Per request, in order; `served` is the place of the served question in the stream, or NEVER."""

    arm: str
    budget: Budget
    seed: int
    served: NDArray[np.int64]
    score: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    offered: NDArray[np.bool_]
    explored: NDArray[np.bool_]
    audited: NDArray[np.bool_]
    decision_ms: NDArray[np.float64]
    decision_cpu_ms: NDArray[np.float64]  # the thread's own time, which a busy machine does not stretch
    reasons: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.served)

    @property
    def num_served(self) -> int:
        return int((self.served != NEVER).sum())

    @property
    def num_wrong(self) -> int:
        return int(self.wrong.sum())

    @property
    def num_saved(self) -> int:
        """Calls of the model that were not made: hits less audits. What was explored was never saved."""
        return self.num_served - int(self.audited.sum())

    def row(self) -> dict[str, Any]:
        """The row of the report."""
        served, wrong = self.num_served, self.num_wrong
        return {
            "arm": self.arm,
            "budget": {"max_error": self.budget.max_error, "max_hit_error": self.budget.max_hit_error},
            "seed": self.seed,
            "requests": self.requests,
            "served": served,
            "wrong": wrong,
            "wrong_per_request": wrong / self.requests if self.requests else None,
            "wrong_per_request_ci95": wilson(wrong, self.requests),
            "wrong_per_hit": wrong / served if served else None,
            "wrong_per_hit_ci95": wilson(wrong, served),
            "draft_offered": int(self.offered.sum()),
            "explored": int(self.explored.sum()),
            "decision_ms_p50": float(np.percentile(self.decision_ms, 50)),
            "decision_ms_p99": float(np.percentile(self.decision_ms, 99)),
            "decision_cpu_ms_p99": float(np.percentile(self.decision_cpu_ms, 99)),
            "audits": int(self.audited.sum()),
            "calls_saved_net": self.num_saved,
            "reasons": dict(Counter(reason for reason in self.reasons if reason).most_common()),
        }


def run(
    arm: Arm, stream: Sequence[Question], ranks: Ranks, *, seed: int, span: range | None = None,
    stored: Stored | None = None, stores: bool = True, learns: bool = True,
) -> Run:  # fmt: skip
    """Ask the questions of `span`, all by default, against `stored`, which grows unless `stores` is False."""
    stored = stored or Stored(ranks)
    span = span if span is not None else range(len(stream))
    num = len(span)
    made = Run(
        arm.name, arm.budget, seed, np.full(num, NEVER), np.zeros(num), np.zeros(num, bool), np.zeros(num, bool),
        np.zeros(num, bool), np.zeros(num, bool), np.zeros(num), np.zeros(num),
    )  # fmt: skip
    for place, asked in enumerate(span):
        found = stored.nearest(asked, arm.num_neighbours) if arm.num_neighbours else []
        started, cpu_started = time.perf_counter(), time.thread_time()
        choice = arm.decide(asked, found)
        made.decision_cpu_ms[place] = (time.thread_time() - cpu_started) * 1e3
        made.decision_ms[place] = (time.perf_counter() - started) * 1e3
        made.reasons.append(choice.reason)
        made.offered[place] = choice.offers_draft
        if choice.served is not None:
            made.served[place], made.score[place] = choice.served
            made.wrong[place] = stream[choice.served.at].class_id != stream[asked].class_id
            made.audited[place] = choice.audit
        if learns and (choice.served is None or choice.audit):
            lesson = arm.computed(asked, found, choice)
            made.explored[place] = lesson.explored
            if lesson.store and stores:
                stored.add(asked)
    return made
