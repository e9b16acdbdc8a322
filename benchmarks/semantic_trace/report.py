"""The tables on stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.semantic_trace.campaign import Seed
from benchmarks.semantic_trace.intervals import wilson
from benchmarks.semantic_trace.run import Run

# Fewer hits than this say nothing about wrong answers per hit.
MIN_HITS = 200


def streams(seeds: Sequence[Seed]) -> Iterator[str]:
    for seed in seeds:
        num = len(seed.stream)
        yield f"seed {seed.number}: {num} questions, {seed.num_answerable / num:.1%} answerable from an earlier one"


def reference(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield ""
    yield "Fixed cosine, one neighbour, every question stored (what the data allows)"
    yield f"{'cosine >=':>10} {'served':>8} {'wrong/request':>14} {'wrong/hit':>10}"
    for row in rows:
        hit = "-" if row["wrong_per_hit"] is None else f"{row['wrong_per_hit']:.1%}"
        yield f"{row['threshold']:>10.2f} {row['served_share']:>8.1%} {row['wrong_per_request']:>14.2%} {hit:>10}"


def arms(runs: Sequence[Run]) -> Iterator[str]:
    """One line for each arm and budget: means and pooled shares over the seeds, and whether the bounds hold."""
    yield ""
    yield "Arms (budget: wrong per request / wrong per hit; hits and calls saved: mean of the seeds)"
    yield (
        f"{'arm':<12} {'budget':>11} {'hits':>6} {'range':>10} {'saved':>6} {'wrong/request (95 % CI)':>25}"
        f" {'worst':>7} {'bound':>9} {'wrong/hit (95 % CI)':>23} {'bound':>9} {'explored':>9} {'drafts':>7}"
        f" {'p50 ms':>7} {'p99 ms':>7} {'cpu p99':>7}"
    )
    for group in _groups(runs):
        yield _line(group)
    yield (
        "worst: the highest upper end over the seeds. bound: `yes` when that is within the budget, `measured` when "
        "only the share itself is, in every seed."
    )


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    found: dict[tuple[str, float | None, float | None], list[Run]] = {}
    for made in runs:
        found.setdefault((made.arm, made.budget.max_error, made.budget.max_hit_error), []).append(made)
    return list(found.values())


def _line(group: Sequence[Run]) -> str:
    first = group[0]
    hits = [made.num_served for made in group]
    wrong, requests = sum(made.num_wrong for made in group), sum(made.requests for made in group)
    upper = max((wilson(made.num_wrong, made.requests) or (0, 1))[1] for made in group)
    share = max(made.num_wrong / max(made.requests, 1) for made in group)
    decision_ms = np.concatenate([made.decision_ms for made in group])
    cpu_ms = np.concatenate([made.decision_cpu_ms for made in group])
    return (
        f"{first.arm:<12} {_budget(first):>11} {np.mean(hits):>6.0f} {f'{min(hits)}-{max(hits)}':>10}"
        f" {np.mean([made.num_saved for made in group]):>6.0f} {_interval(wrong, requests):>25} {upper:>7.2%}"
        f" {_holds(upper, share, first.budget.max_error):>9} {_per_hit(group):>33}"
        f" {np.mean([made.explored.sum() for made in group]):>9.0f} {np.mean([m.offered.sum() for m in group]):>7.0f}"
        f" {np.percentile(decision_ms, 50):>7.3f} {np.percentile(decision_ms, 99):>7.3f}"
        f" {np.percentile(cpu_ms, 99):>7.3f}"
    )


def _per_hit(group: Sequence[Run]) -> str:
    """The share and whether the bound holds; a claim only about runs with enough hits."""
    claimed = [made for made in group if made.num_served >= MIN_HITS]
    if not claimed:
        return f"{'abstained' if group[0].num_served or group[0].budget.max_error else '-':>23} {'-':>9}"
    upper = max((wilson(made.num_wrong, made.num_served) or (0, 1))[1] for made in claimed)
    share = max(made.num_wrong / made.num_served for made in claimed)
    pooled = _interval(sum(made.num_wrong for made in claimed), sum(made.num_served for made in claimed))
    return f"{pooled:>23} {_holds(upper, share, group[0].budget.max_hit_error):>9}"


def _interval(num_wrong: int, num: int) -> str:
    found = wilson(num_wrong, num)
    return "-" if found is None else f"{num_wrong / num:.2%} ({found[0]:.2%}-{found[1]:.2%})"


def _holds(upper: float, share: float, budget: float | None) -> str:
    if budget is None:
        return "-"
    return "yes" if upper <= budget else "measured" if share <= budget else "NO"


def _budget(made: Run) -> str:
    if made.budget.max_error is None:
        return "-"
    hit = "" if made.budget.max_hit_error is None else f"/{made.budget.max_hit_error:.0%}"
    return f"{made.budget.max_error:.1%}{hit}"


def comparison(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield "Hits at equal measured error (semcache with only the bound per request, interpolated; means of the seeds)"
    yield f"{'against':<17} {'budget':>7} {'at error':>9} {'its hits':>9} {'semcache':>9} {'ratio':>6}"
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        notes = [] if row["counted"] else ["too few hits to count"]
        notes += ["at our largest error"] if row["at_our_largest_error"] else []
        notes += ["second half of the stream only"] if row["against"] == "static:past" else []
        yield (
            f"{row['against']:<17} {row['budget']:>7.1%} {row['error']:>9.3%} {row['hits']:>9.0f}"
            f" {row['semcache_hits']:>9.0f} {ratio:>6}  {', '.join(notes)}"
        )


def near_miss(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "Near misses (one wording stored before, the other asked; at defaults, the worst state counts)"
    for state in found["states"]:
        wrong = _interval(state["served_wrongly"], state["pairs"])
        yield (
            f"{state['state']:<16} of {state['pairs']} other questions {state['served_wrongly']} served: {wrong}; "
            f"of {state['paraphrases']} paraphrases {state['served']} served, {state['draft_offered']} drafted"
        )


def drift(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield ""
    yield "Drift (questions in many wordings; from half of the stream on near-duplicates that ask something else)"
    for row in rows:
        budget = f"{row['budget']['max_error']:.1%}/{row['budget']['max_hit_error']:.0%}"
        labels = "all labels" if row["labels"] == "all" else "then only audits"
        fallback = (
            "no fallback"
            if row["fallback_after_requests"] is None
            else f"fallback after {row['fallback_after_requests']} requests and {row['fallback_after_audits']} audits"
        )
        yield (
            f"{budget:>11} seed {row['seed']}, {labels}: "
            f"before {row['before']['served']} hits, {row['before']['wrong']} wrong; "
            f"after {row['after']['served']} hits, {row['after']['wrong']} wrong, {row['after']['audits']} audits; "
            f"{fallback}; {_back(row)}"
        )


def _back(row: dict[str, Any]) -> str:
    if row["back_after_requests"] is None:
        return f"still over the budget at the end (windows of {row['window']})"
    if row["back_after_requests"] == 0:
        return f"never over the budget (windows of {row['window']})"
    return f"back under it after {row['back_after_requests']} requests and {row['back_after_audits']} audits"


def zipf(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield ""
    yield "Repeats (Zipf), all seeds together: the exact key first, then the policy"
    yield (
        f"{'budget':>11} {'aliases':>8} {'requests':>9} {'exact':>7} {'by alias':>9} {'semantic':>9} {'wrong':>6}"
        f" {'computed before':>16} {'of these hit':>13}"
    )
    groups: dict[tuple[str, bool], Counter[str]] = {}
    for row in rows:
        budget = f"{row['budget']['max_error']:.1%}/{row['budget']['max_hit_error']:.0%}"
        counts = {key: value for key, value in row.items() if key not in ("budget", "seed", "aliases")}
        groups.setdefault((budget, row["aliases"]), Counter()).update(counts)
    for (budget, aliases), total in groups.items():
        hit = total["repeats_hit"] / total["repeats"] if total["repeats"] else 0.0
        yield (
            f"{budget:>11} {'with' if aliases else 'without':>8} {total['requests']:>9} {total['exact']:>7}"
            f" {total['by_alias']:>9} {total['semantic']:>9} {total['wrong']:>6} {total['repeats']:>16} {hit:>13.2%}"
        )
