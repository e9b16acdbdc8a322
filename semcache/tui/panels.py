"""What each panel of the overview says, as a function of the numbers and of the room it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from textual.content import Content

from semcache.tui import units
from semcache.tui.outcomes import ANSWER_HITS, COMPUTE_HITS, outcome_badge
from semcache.wire.protocol import OUTCOME_GLYPHS, OUTCOMES
from semcache.wire.status import LatencyStatus, SemanticStatus, Stats, Status
from semcache.wording import estimate, percent, short_estimate

NO_LATENCY = LatencyStatus(n=0, ttft_p50=None, ttft_p95=None, total_p50=None, total_p95=None)
_LABEL_WIDTH = 10
_MIN_BAR = 6


@dataclass
class Numbers:
    """The newest numbers; panels read nothing else."""

    status: Status | None = None
    stats: Stats | None = None
    rates: Sequence[float] = field(default_factory=list)  # requests per second at every poll, newest last


Draw = Callable[[Numbers, int, int], Content]


def _right(text: str, width: int, style: str = "") -> Content:
    return Content.styled(text.rjust(width), style)


def _line(*parts: Content | str) -> Content:
    return Content("").join([part if isinstance(part, Content) else Content(part) for part in parts])


def _lines(lines: Sequence[Content]) -> Content:
    return Content("\n").join(lines)


def outcomes(numbers: Numbers, width: int, height: int) -> Content:
    """Share and latency of every outcome since the daemon started, and the two sums."""
    counted = numbers.status["outcomes"] if numbers.status else {}
    latency = numbers.status["latency"] if numbers.status else {}
    whole = sum(counted.get(outcome, 0) for outcome in OUTCOMES)
    # In order of importance; what does not fit is left out, the bar takes the rest.
    optional = [("ttft p50", 10, "ttft_p50"), ("p95", 9, "ttft_p95"), ("total p50", 11, "total_p50"), ("n", 8, "n")]
    room = width - _LABEL_WIDTH - 1 - 9 - _MIN_BAR
    shown: list[tuple[str, int, str]] = []
    for column in optional:
        if room >= column[1]:
            room -= column[1]
            shown.append(column)
    bar_width = max(0, _MIN_BAR + room)
    head = _line(" " * (_LABEL_WIDTH + 1 + bar_width), _right("share", 9, ".faint"))
    lines = [_line(head, *(_right(title, cells, ".faint") for title, cells, _key in shown))]
    for outcome in OUTCOMES:
        share = units.share(counted.get(outcome, 0), whole)
        measured = latency.get(outcome, NO_LATENCY)
        texts = {
            "n": units.count(counted.get(outcome, 0)),
            "ttft_p50": units.ms(measured["ttft_p50"]),
            "ttft_p95": units.ms(measured["ttft_p95"]),
            "total_p50": units.ms(measured["total_p50"]),
        }
        lines.append(
            _line(
                outcome_badge(outcome).pad_right(_LABEL_WIDTH - len(outcome) - 1),
                units.bar(share or 0.0, bar_width, f".{outcome}"),
                _right(units.percent(share), 9),
                *(_right(texts[key], cells) for _title, cells, key in shown),
            )
        )
    lines.append(_sums(counted, whole, width))
    return _lines(lines)


def _sums(counted: dict[str, int], whole: int, width: int) -> Content:
    """Two sums, never one: answers that were replayed, and requests that computed less."""
    parts: list[Content] = []
    for name, members in (("answer hits", ANSWER_HITS), ("compute hits", COMPUTE_HITS)):
        share = units.share(sum(counted.get(outcome, 0) for outcome in members), whole)
        glyphs = [Content.styled(OUTCOME_GLYPHS[outcome], f".{outcome}") for outcome in members] if width >= 56 else []
        parts.append(_line(f"{name} ", *glyphs, " " if glyphs else "", Content.styled(units.percent(share), ".strong")))
    return Content("   ").join(parts)


def tiers(numbers: Numbers, width: int, height: int) -> Content:
    """How full memory and disk are, and with what."""
    status = numbers.status
    if status is None:
        return Content("")
    lines: list[Content] = []
    for name, tier in status["tiers"].items():
        label = units.used_of(tier["used_bytes"], tier["limit_bytes"])
        used = tier["used_bytes"] / tier["limit_bytes"] if tier["limit_bytes"] else 0.0
        lines.append(_gauge(name, used, label, width))
    counted = [("entries", status["entries"]), ("blocks", status["blocks"])]
    if height < 5:
        lines.append(Content(" · ".join(f"{units.count(n)} {name}" for name, n in counted)))
        return _lines(lines[:height])
    counted += [("evicted", status["counters"].get("evictions", 0))]
    lines += [Content(""), *(_pair(name, units.count(n), width) for name, n in counted)]
    queue = status["queue"]
    lines.append(_pair("running/waiting", f"{queue.get('running', 0)}/{queue.get('waiting', 0)}", width))
    return _lines(lines[:height])


def _gauge(name: str, used: float, label: str, width: int) -> Content:
    style = ".failed" if used > 0.95 else ".running"
    return _line(f"{name:<5}", units.bar(used, max(0, width - 6 - len(label)), style), " ", label)


def _pair(name: str, value: str, width: int) -> Content:
    return _line(Content.styled(name, ".faint"), value.rjust(max(0, width - len(name))))


def saved(numbers: Numbers, width: int, height: int) -> Content:
    """What reuse was worth since the data directory was made, and what it may have cost."""
    if numbers.stats is None:
        return Content("")
    total = numbers.stats["total"]
    share = units.share(total["cached_tokens"], total["prompt_tokens"])
    if height < 5:
        cached = f"{units.count(total['cached_tokens'])} · {units.percent(share)}"
        rows = [
            ("tokens", cached),
            ("time", units.seconds(total["saved_ms"] / 1e3)),
            ("wrong hits", short_estimate(total["wrong_hits"])),
        ]
        return _lines([_pair(name, value, width) for name, value in rows[:height]])
    rows = [
        ("prompt tokens", units.count(total["prompt_tokens"])),
        ("not computed", units.count(total["cached_tokens"])),
        ("share", units.percent(share)),
        ("drafts accepted", units.count(total["accepted_tokens"])),
        ("time saved", units.seconds(total["saved_ms"] / 1e3)),
    ]
    lines = [_pair(name, value, width) for name, value in rows]
    lines += [Content.styled("wrong of audited hits", ".faint"), _right(short_estimate(total["wrong_hits"]), width)]
    return _lines(lines[:height])


def trust(numbers: Numbers, width: int) -> str:
    """The same as `semantic`, once there are numbers."""
    return semantic(numbers.status["semantic"], width) if numbers.status is not None else ""


def semantic(status: SemanticStatus, width: int) -> str:
    """How far answers of other wordings are trusted, in at most `width` cells if that can be."""
    if status["policy"] == "off":
        return "semantic off"
    rules = {"threshold": f"semantic ≥ {status['threshold']:g}"}
    policy = rules.get(status["policy"], f"semantic {status['policy']}")
    due = f"{status['due_audits']} due" if status["due_audits"] else ""
    budgets = f"budgets {percent(status['max_error'])}, {percent(status['max_hit_error'])}"
    choices = [
        (policy, budgets if status["policy"] == "verified" else "", estimate(status), due),
        (policy, estimate(status), due),
        (policy, short_estimate(status), due),
        (policy, short_estimate(status)),
    ]
    said = [" · ".join(part for part in parts if part) for parts in choices]
    return next((text for text in said if len(text) <= width), said[-1])


def throughput(numbers: Numbers, width: int, height: int) -> Content:
    """Requests per second as columns, and the same in words."""
    rates, status = numbers.rates, numbers.status
    chart = units.columns(rates, width, max(1, height - 1))
    now = rates[-1] if rates else 0.0
    queue = status["queue"] if status else {}
    words = f"{now:.1f} req/s · peak {max(rates, default=0.0):.1f}"
    if queue:
        words += f" · {queue.get('running', 0)} running"
    return _lines([*(Content.styled(line, ".running") for line in chart), Content(words)])
