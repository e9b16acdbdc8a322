"""Records to `summary.json`. Unknown is null, never 0; every rate comes with the count it is a rate of.

Percentiles are nearest-rank: each is a time that was really measured. Times are the client's own. A share is of all
requests, failed ones included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semcache.replay.dataset import Dataset
from semcache.replay.gates import Gate, check
from semcache.replay.judge import wilson95
from semcache.replay.memory import Memory
from semcache.replay.record import RequestRecord, cached_tokens
from semcache.wire.protocol import OUTCOMES

PERCENTILES = (50, 95, 99)
ANSWER_HITS = ("exact", "semantic")
COMPUTE_HITS = ("exact", "semantic", "draft", "prefix")
UNKNOWN = "unknown"
SCHEMA = "semcache.replay/1"


@dataclass(frozen=True)
class Measured:
    """What one combination of a run left behind; `baseline` is empty without --baseline."""

    dataset: Dataset
    settings: Mapping[str, Any]
    records: Sequence[RequestRecord]
    baseline: Sequence[RequestRecord] = ()
    memory: Memory | None = None
    cost_per_hour: float | None = None


def summarise(measured: Measured) -> dict[str, Any]:
    """The summary of one combination, as the contract spells it."""
    records = measured.records
    answered = [record for record in records if record.reply]
    reference = _Reference(answered, measured.baseline)
    names = (UNKNOWN,) if measured.settings.get("target") else OUTCOMES
    num = len(records)
    outcomes = {
        name: _group([record for record in answered if _outcome(record) == name], num, reference) for name in names
    }
    seconds = _duration_s(records)
    return {
        "schema": SCHEMA,
        "dataset": _dataset(measured.dataset),
        "settings": {**measured.settings, "percentiles": "nearest-rank", "speedup": reference.described},
        "requests": num,
        "errors": num - len(answered),
        "error_share": _share(num - len(answered), num),
        "retries": sum(record.attempts - 1 for record in records),
        "outcomes": outcomes,
        "overall": _group(answered, num, reference, per_outcome=False),
        "baseline": _baseline(measured),
        **_hits(outcomes, num),
        "speedup": {
            "overall": reference.mean_speedup(answered, _total),
            "ttft": reference.mean_speedup(answered, _ttft),
            "control": reference.control(),
        },
        "wrong_hits": _wrong_hits(answered),
        "tokens": _tokens(answered),
        "throughput": _throughput(answered, seconds),
        "duration_s": seconds,
        "late_ms": percentiles(record.late_ms for record in records) if measured.settings.get("rate") else None,
        "memory": measured.memory.summary() if measured.memory else {"peak_mb": None, "series": None},
        "cost": _cost(measured.cost_per_hour, seconds, num),
        "gates": [],
    }


def judged(summary: dict[str, Any], gates: Iterable[Gate]) -> dict[str, Any]:
    """The summary with a verdict for each gate; raises UsageError for a name that no summary has."""
    return summary | {"gates": [check(gate, summary).to_json() for gate in gates]}


def percentiles(values: Iterable[float | None]) -> dict[str, float | None]:
    """p50, p95 and p99 by nearest rank; None where nothing was measured."""
    known = sorted(value for value in values if value is not None)
    return {f"p{rank}": known[math.ceil(rank / 100 * len(known)) - 1] if known else None for rank in PERCENTILES}


class _Reference:
    """What an answer is compared with to call it faster: its own baseline, or else the misses of the same run.

    Per outcome it is the ratio of medians. Over all requests it is the ratio of means, the saving of the whole run:
    with 60 % hits the median request is a hit, and its ratio would promise far more than the run saved.
    """

    def __init__(self, answered: Sequence[RequestRecord], baseline: Sequence[RequestRecord]) -> None:
        self._baseline = {record.prompt: record for record in baseline if record.reply}
        self._misses = [record for record in answered if _outcome(record) == "miss"]
        self._has_baseline = bool(baseline)

    @property
    def described(self) -> dict[str, str]:
        what = "baseline of the same prompts" if self._has_baseline else "misses of this run"
        return {"reference": what, "outcome": "median / median", "overall": "mean / mean"}

    def median_speedup(self, records: Sequence[RequestRecord], time_of: Callable[[RequestRecord], float | None]) -> Any:
        return _ratio(_median(self._times(records, time_of)), _median(_known(records, time_of)))

    def mean_speedup(self, records: Sequence[RequestRecord], time_of: Callable[[RequestRecord], float | None]) -> Any:
        return _ratio(_mean(self._times(records, time_of)), _mean(_known(records, time_of)))

    def control(self) -> float | None:
        """Decode time of the baseline ÷ that of the misses on the same prompts: the same work, so it should be 1.

        The passes run one after the other. On a machine whose load changes in between, every speed-up carries this
        factor (25.9 and 0.02 were seen minutes apart on two busy cores). Decode only: a miss also pays the look-up.
        """
        if not self._has_baseline:
            return None
        return _ratio(_median(self._times(self._misses, _decode)), _median(_known(self._misses, _decode)))

    def _times(self, records: Sequence[RequestRecord], time_of: Callable[[RequestRecord], float | None]) -> list[float]:
        if not self._has_baseline:
            return _known(self._misses, time_of)
        twins = (self._baseline.get(record.prompt) for record in records)
        return _known([twin for twin in twins if twin is not None], time_of)


def _group(
    records: Sequence[RequestRecord], of: int, reference: _Reference | None, *, per_outcome: bool = True
) -> dict[str, Any]:
    checked = [record.correct for record in records if record.correct is not None]
    speedup = None
    if reference is not None:
        ratio = reference.median_speedup if per_outcome else reference.mean_speedup
        speedup = {"total": ratio(records, _total), "ttft": ratio(records, _ttft)}
    return {
        "n": len(records),
        "share": _share(len(records), of),
        "ttft_ms": percentiles(map(_ttft, records)),
        "total_ms": percentiles(map(_total, records)),
        "correct": _share(sum(checked), len(checked)),
        "checked": len(checked),
        "speedup": speedup,
    }


def _baseline(measured: Measured) -> dict[str, Any] | None:
    if not measured.settings.get("baseline"):
        return None
    return _group([record for record in measured.baseline if record.reply], len(measured.baseline), None)


def _hits(outcomes: Mapping[str, Any], num: int) -> dict[str, Any]:
    if UNKNOWN in outcomes:
        return dict.fromkeys(("answer_hits", "answer_share", "compute_hits", "compute_share"))
    answers = sum(outcomes[name]["n"] for name in ANSWER_HITS)
    computed = sum(outcomes[name]["n"] for name in COMPUTE_HITS)
    return {
        "answer_hits": answers,
        "answer_share": _share(answers, num),
        "compute_hits": computed,
        "compute_share": _share(computed, num),
    }


def _wrong_hits(answered: Sequence[RequestRecord]) -> dict[str, Any]:
    checked = [record for record in answered if record.wrong is not None]
    wrong = sum(bool(record.wrong) for record in checked)
    interval = wilson95(wrong, len(checked))
    return {
        "checked": len(checked),
        "wrong": wrong if checked else None,
        "rate": _share(wrong, len(checked)),
        "ci95": list(interval) if interval else None,
        "by": {name: sum(record.reference == name for record in checked) for name in ("baseline", "expected")},
    }


def _tokens(answered: Sequence[RequestRecord]) -> dict[str, int | None]:
    usages = [record.reply.usage or {} for record in answered if record.reply]
    caches = [record.reply.cache or {} for record in answered if record.reply]
    return {
        "prompt": _sum(usage.get("prompt_tokens") for usage in usages),
        "cached": _sum(cached_tokens(usage) for usage in usages),
        "completion": _sum(usage.get("completion_tokens") for usage in usages),
        "drafted": _sum(cache.get("draft_tokens") for cache in caches),
        "accepted": _sum(cache.get("draft_accepted") for cache in caches),
    }


def _throughput(answered: Sequence[RequestRecord], seconds: float | None) -> dict[str, float | None]:
    tokens = _tokens(answered)["completion"]
    return {
        "requests_per_s": _ratio(len(answered), seconds),
        "tokens_per_s": None if tokens is None else _ratio(tokens, seconds),
    }


def _duration_s(records: Sequence[RequestRecord]) -> float | None:
    """First send to last answer; a resumed run continues the clock, so its pause does not count."""
    if not records:
        return None
    return round(max(record.ended_s for record in records) - min(record.started_s for record in records), 6)


def _cost(per_hour: float | None, seconds: float | None, num: int) -> dict[str, float | None] | None:
    if per_hour is None:
        return None
    if seconds is None:
        return {"per_hour": per_hour, "total": None, "per_1000_requests": None}
    total = per_hour * seconds / 3600
    return {"per_hour": per_hour, "total": total, "per_1000_requests": total / num * 1000}


def _dataset(dataset: Dataset) -> dict[str, Any]:
    return {"path": str(dataset.path), "sha256": dataset.sha256, "rows": len(dataset.rows)}


def _outcome(record: RequestRecord) -> str:
    return record.reply.outcome if record.reply else ""


def _ttft(record: RequestRecord) -> float | None:
    return record.reply.ttft_ms if record.reply else None


def _total(record: RequestRecord) -> float | None:
    return record.reply.total_ms if record.reply else None


def _decode(record: RequestRecord) -> float | None:
    """By the daemon's clock; None for a server that does not tell."""
    return (record.reply.timing_ms or {}).get("decode") if record.reply else None


def _known(records: Iterable[RequestRecord], time_of: Callable[[RequestRecord], float | None]) -> list[float]:
    return [value for value in map(time_of, records) if value is not None]


def _median(values: Sequence[float]) -> float | None:
    return percentiles(values)["p50"]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None
