"""Hits at equal measured error: our hit-error curve against a point of another arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.semantic_trace.campaign import LOOSE_HIT_ERROR
from benchmarks.semantic_trace.run import NEVER, Run

# Below this, a ratio of hits would say little.
MIN_HITS = 100


@dataclass(frozen=True)
class Point:
    """Means over the seeds: wrong per request and hits per run."""

    error: float
    hits: float


def compare(runs: Sequence[Run], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """Rows against vCache, against the fixed threshold chosen on the first half, and against the best in hindsight."""
    ours = [made for made in runs if made.arm == "semcache" and made.budget.max_hit_error == LOOSE_HIT_ERROR]
    if not ours:
        return []
    rows = []
    for name in ("vcache", "vcache_grid"):
        theirs = {b: _of(runs, name, b) for b in budgets if _of(runs, name, b)}
        curve = [_point(made) for made in theirs.values()]
        for budget, made in theirs.items():
            rows.append({"against": name, "budget": budget} | _equal(_curve(ours, budgets), _point(made), curve))
    static = [made for made in runs if made.arm.startswith("static:")]
    for budget in budgets if static else ():
        chosen = list(_chosen_on_past(static, budget))
        if chosen:
            later = [_half(made, 1) for made in static]
            point, curve = _point([_half(made, 1) for made in chosen]), _thresholds(later)
            found = _equal(_curve([_half(made, 1) for made in ours], budgets), point, curve)
            rows.append({"against": "static:past", "budget": budget, "thresholds": [m.arm for m in chosen]} | found)
    for budget in budgets if static else ():
        mine = _of(ours, "semcache", budget)
        if mine:
            point = _point(mine)
            theirs_hits = _interpolate(_thresholds(static), point.error)
            rows.append(
                {"against": "static:hindsight", "budget": budget} | _row(point.error, theirs_hits, point.hits, False)
            )
    return rows


def _of(runs: Iterable[Run], arm: str, max_error: float) -> list[Run]:
    return [made for made in runs if made.arm == arm and made.budget.max_error == max_error]


def _point(runs: Sequence[Run]) -> Point:
    error = float(np.mean([made.num_wrong / max(made.requests, 1) for made in runs]))
    return Point(error, float(np.mean([made.num_served for made in runs])))


def _curve(runs: Sequence[Run], budgets: Sequence[float]) -> list[Point]:
    return [_point(_of(runs, "semcache", b)) for b in budgets if _of(runs, "semcache", b)]


def _thresholds(runs: Sequence[Run]) -> list[Point]:
    names = sorted({made.arm for made in runs})
    return [_point([made for made in runs if made.arm == name]) for name in names]


def _chosen_on_past(static: Sequence[Run], budget: float) -> Iterable[Run]:
    """For each seed the lowest threshold whose first half stayed within the budget as measured."""
    for seed in sorted({made.seed for made in static}):
        within = [
            made for made in static
            if made.seed == seed and (past := _half(made, 0)).num_wrong <= budget * max(past.requests, 1)
        ]  # fmt: skip
        if within:
            yield min(within, key=lambda made: made.arm)


def _half(made: Run, which: int) -> Run:
    middle = made.requests // 2
    part = slice(0, middle) if which == 0 else slice(middle, None)
    return Run(
        made.arm, made.budget, made.seed, made.served[part], made.score[part], made.wrong[part], made.offered[part],
        made.explored[part], made.audited[part], made.decision_ms[part],
        made.decision_cpu_ms[part], made.reasons[part],
    )  # fmt: skip


def _equal(ours: Sequence[Point], theirs: Point, their_curve: Sequence[Point]) -> dict[str, Any]:
    """At their error, or, where we never made that many errors, at our largest one on their curve."""
    largest = max(point.error for point in ours)
    if theirs.error <= largest:
        return _row(theirs.error, theirs.hits, _interpolate(ours, theirs.error), False)
    return _row(largest, _interpolate(their_curve, largest), _interpolate(ours, largest), True)


def _interpolate(curve: Sequence[Point], error: float) -> float:
    """Hits at `error`; no hits make no errors."""
    most: dict[float, float] = {0.0: 0.0}
    for point in curve:
        most[point.error] = max(point.hits, most.get(point.error, 0.0))
    errors = sorted(most)
    return float(np.interp(error, errors, [most[x] for x in errors]))


def _row(error: float, theirs: float, ours: float, beyond: bool) -> dict[str, Any]:
    counted = theirs >= MIN_HITS
    return {
        "error": error,
        "hits": theirs,
        "semcache_hits": ours,
        "ratio": ours / theirs if theirs > 0 else None,
        "counted": counted,
        "at_our_largest_error": beyond,
    }


def wrong_pairs(made: Run) -> list[tuple[int, int, float]]:
    """(asked, served, cosine) of the wrong hits, places in the stream."""
    at = np.flatnonzero(made.wrong & (made.served != NEVER))
    return list(zip(at.tolist(), made.served[at].tolist(), made.score[at].tolist(), strict=True))
