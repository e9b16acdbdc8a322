"""`GET /metrics`: the state of the daemon as Prometheus text. One row of a table per metric; nothing is counted here.

No prompt, no answer, no user and no path is ever part of it, so that a scraper may keep it and show it to anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from semcache.wire.protocol import OUTCOMES
from semcache.wire.status import LatencyStatus, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "semcache_"

STATES = ("starting", "loading", "ready", "draining", "failed")
MODEL_STATES = ("unloaded", "loading", "ready", "failed")

# Labels and a value; None is unknown, and what is unknown is left out.
Sample = tuple[Mapping[str, str], float | None]


@dataclass(frozen=True)
class Metric:
    """`name` is without the prefix; `read` gives the samples of one picture of the daemon."""

    name: str
    kind: str  # counter, gauge or summary
    help: str
    read: Callable[[Status], Iterable[Sample]]


def _one(read: Callable[[Status], float | None]) -> Callable[[Status], Iterable[Sample]]:
    return lambda status: [({}, read(status))]


def _is(states: Iterable[str], read: Callable[[Status], str]) -> Callable[[Status], Iterable[Sample]]:
    """One sample per state, 1 for the one that holds."""
    return lambda status: [({"state": state}, float(read(status) == state)) for state in states]


def _latency(p50: Callable[[LatencyStatus], float | None], p95: Callable[[LatencyStatus], float | None]) -> Callable[
    [Status], Iterable[Sample]
]:  # fmt: skip
    """Milliseconds of the status as seconds by outcome and quantile."""

    def read(status: Status) -> Iterator[Sample]:
        for outcome, measured in status["latency"].items():
            for quantile, value in (("0.5", p50(measured)), ("0.95", p95(measured))):
                yield {"outcome": outcome, "quantile": quantile}, None if value is None else round(value / 1e3, 6)

    return read


def _by_tier(key: str) -> Callable[[Status], Iterable[Sample]]:
    return lambda status: [
        ({"tier": name}, float(tier[key]))  # type: ignore[literal-required]
        for name, tier in status["tiers"].items()
    ]


def _model_info(status: Status) -> Iterable[Sample]:
    model = status["model"]
    facts = {
        "name": _without_folder(model["name"]), "architecture": model["architecture"], "device": model["device"],
        "dtype": model["dtype"], "fingerprint": model["fingerprint"],
    }  # fmt: skip
    return [({name: fact for name, fact in facts.items() if fact is not None}, 1.0)]


def _semantic_info(status: Status) -> Iterable[Sample]:
    semantic = status["semantic"]
    embedder = _without_folder(semantic["embedder"])
    labels = {"policy": semantic["policy"], "equivalence": semantic["equivalence"], "embedder": embedder}
    return [(labels, 1.0)]


def _without_folder(name: str) -> str:
    """A model in a local folder by its last part: the rest may hold a person's name."""
    return PurePath(name).name if name.startswith(("/", "~", ".")) else name


def _bound(index: int) -> Callable[[Status], float | None]:
    def read(status: Status) -> float | None:
        interval = status["semantic"]["ci95"]
        return None if interval is None else interval[index]

    return read


METRICS = (
    Metric("info", "gauge", "Version of the daemon.", lambda s: [({"version": s["version"]}, 1.0)]),
    Metric("uptime_seconds", "gauge", "Time since the daemon started.", _one(lambda s: s["uptime_s"])),
    Metric("state", "gauge", "1 for the state that holds.", _is(STATES, lambda s: s["state"])),
    Metric(
        "requests_total", "counter", "Finished requests by what was reused, since the daemon started.",
        lambda s: [({"outcome": name}, float(s["outcomes"].get(name, 0))) for name in OUTCOMES],
    ),
    Metric(
        "ttft_seconds", "summary", "Time to the first token by outcome, over the newest requests (at most 1024).",
        _latency(lambda measured: measured["ttft_p50"], lambda measured: measured["ttft_p95"]),
    ),
    Metric(
        "request_seconds", "summary", "Time to the last token by outcome, over the newest requests (at most 1024).",
        _latency(lambda measured: measured["total_p50"], lambda measured: measured["total_p95"]),
    ),
    Metric(
        "queue_requests", "gauge", "Requests in the engine, running and waiting for a slot.",
        lambda s: [({"state": name}, float(number)) for name, number in s["queue"].items()],
    ),
    Metric("model_info", "gauge", "The model that is served, as far as it is known.", _model_info),
    Metric("model_state", "gauge", "1 for the state that holds.", _is(MODEL_STATES, lambda s: s["model"]["state"])),
    Metric("model_weights_bytes", "gauge", "Memory of the weights.", _one(lambda s: s["model"]["weights_bytes"])),
    Metric("model_slots", "gauge", "Requests that are computed at once.", _one(lambda s: s["model"]["slots"])),
    Metric("model_context_tokens", "gauge", "Most tokens of a request.", _one(lambda s: s["model"]["context_tokens"])),
    Metric("tier_used_bytes", "gauge", "What a tier of the cache holds.", _by_tier("used_bytes")),
    Metric("tier_limit_bytes", "gauge", "What a tier of the cache may hold.", _by_tier("limit_bytes")),
    Metric("tier_items", "gauge", "Blocks in a tier of the cache.", _by_tier("items")),
    Metric("entries", "gauge", "Stored answers.", _one(lambda s: s["entries"])),
    Metric("blocks", "gauge", "Stored KV blocks.", _one(lambda s: s["blocks"])),
    Metric(
        "store_events_total", "counter", "What happened in the store and the engine, by kind.",
        lambda s: [({"event": name}, float(number)) for name, number in s["counters"].items()],
    ),
    Metric("semantic_info", "gauge", "How answers of other wordings are trusted and compared.", _semantic_info),
    Metric(
        "semantic_max_error", "gauge", "Budget: most wrong answers per request.",
        _one(lambda s: s["semantic"]["max_error"]),
    ),
    Metric(
        "semantic_max_hit_error", "gauge", "Budget: most wrong answers per semantic hit.",
        _one(lambda s: s["semantic"]["max_hit_error"]),
    ),
    Metric(
        "semantic_audits_total", "counter", "Semantic hits that were computed again and compared.",
        _one(lambda s: s["semantic"]["audits"]),
    ),
    Metric(
        "semantic_wrong_total", "counter", "Audited semantic hits that were wrong.",
        _one(lambda s: s["semantic"]["wrong"]),
    ),
    Metric(
        "semantic_wrong_ratio", "gauge", "Share of audited semantic hits that were wrong.",
        _one(lambda s: s["semantic"]["rate"]),
    ),
    Metric(
        "semantic_wrong_ratio_low", "gauge", "Lower end of its 95 % interval.", _one(_bound(0)),
    ),
    Metric(
        "semantic_wrong_ratio_high", "gauge", "Upper end of its 95 % interval.", _one(_bound(1)),
    ),
    Metric(
        "semantic_due_audits", "gauge", "Semantic hits that wait for the engine to be idle to be audited.",
        _one(lambda s: s["semantic"]["due_audits"]),
    ),
    Metric(
        "semantic_suspended_scopes", "gauge", "Scopes where audits switched semantic serving off.",
        _one(lambda s: len(s["semantic"]["suspended"])),
    ),
    Metric(
        "drafts_enabled", "gauge", "1 where stored answers are offered to the model as drafts.",
        _one(lambda s: int(s["semantic"]["drafts"])),
    ),
)  # fmt: skip


def render(status: Status) -> str:
    """The text exposition format; a metric without a known sample is left out."""
    lines: list[str] = []
    for metric in METRICS:
        name = f"{PREFIX}{metric.name}"
        samples = [f"{name}{_labels(labels)} {value!r}" for labels, value in metric.read(status) if value is not None]
        if samples:
            lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}", *samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
