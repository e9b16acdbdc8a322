"""A summary as text: Markdown tables in plain ASCII, the same bytes on a terminal, in a pipe and in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semcache.replay.judge import F1_THRESHOLD

UNKNOWN = "-"
Summary = Mapping[str, Any]


def render(summaries: Sequence[Summary], run_dir: Path, comparison: str = "") -> str:
    """Everything that a replay prints on stdout."""
    lines: list[str] = []
    for summary in summaries:
        lines += [*_combination(summary), ""]
    if len(summaries) > 1:
        lines += [*_side_by_side(summaries), ""]
    for summary in summaries:
        label = f"  [{label_of(summary)}]" if len(summaries) > 1 else ""
        lines += [f"gate {_verdict(gate)}{label}" for gate in summary["gates"]]
    lines += [*comparison.splitlines(), f"saved in {run_dir}"]
    return "\n".join(lines) + "\n"


def failed_gates(summaries: Sequence[Summary]) -> list[str]:
    """The gates that did not pass, in words."""
    return [_verdict(gate) for summary in summaries for gate in summary["gates"] if not gate["passed"]]


def label_of(summary: Summary) -> str:
    """What tells the combinations of a run apart."""
    settings = summary["settings"]
    return f"{settings['strategy'] or 'default'} x{settings['concurrency']}"


def compared(before: Sequence[Summary], now: Sequence[Summary]) -> str:
    """The figures of this run beside those of an earlier one, combination by combination."""
    lines: list[str] = []
    earlier = {label_of(summary): summary for summary in before}
    for summary in now:
        label = label_of(summary)
        other = before[0] if len(before) == len(now) == 1 else earlier.get(label)
        if other is None:
            lines += [f"compared with the earlier run: it has no {label}", ""]
            continue
        if other["dataset"]["sha256"] != summary["dataset"]["sha256"]:
            lines += ["the earlier run read other rows; its figures are not about the same questions", ""]
        rows = [
            [name, show(value(other)), show(value(summary)), _change(value(other), value(summary))]
            for name, value, show in _FIGURES
        ]
        lines += [*table([label, "before", "now", "change"], rows), ""]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with aligned columns; the first is text, the others are numbers."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    lines = [f"| {' | '.join(map(_aligned, row, widths, range(len(row))))} |" for row in cells]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if at == 0 else ":") for at, width in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _combination(summary: Summary) -> Iterator[str]:
    settings, throughput = summary["settings"], summary["throughput"]
    name = Path(summary["dataset"]["path"]).name
    yield (
        f"{name}, {label_of(summary)}: {summary['requests']} requests, {summary['errors']} errors, "
        f"{number(summary['duration_s'], 1)} s, {number(throughput['requests_per_s'], 1)} requests/s, "
        f"{number(throughput['tokens_per_s'], 1)} tokens/s"
    )
    if not settings.get("complete", True):
        yield f"stopped early: {summary['requests']} of {settings['planned']} requests"
    yield ""
    groups = [(outcome, group) for outcome, group in summary["outcomes"].items() if group["n"]]
    groups.append(("all", summary["overall"]))
    if summary["baseline"]:
        groups.append(("baseline", summary["baseline"]))
    yield from table(_HEADER, [_row(outcome, group) for outcome, group in groups])
    yield ""
    yield from _notes(summary)


_HEADER = ("outcome", "n", "share", "TTFT p50", "TTFT p95", "TTFT p99", "total p50", "speed-up", "correct")


def _row(outcome: str, group: Summary) -> list[str]:
    ttft, speedup = group["ttft_ms"], group["speedup"] or {}
    share = UNKNOWN if outcome == "baseline" else percent(group["share"])
    times = [millis(ttft["p50"]), millis(ttft["p95"]), millis(ttft["p99"]), millis(group["total_ms"]["p50"])]
    return [outcome, str(group["n"]), share, *times, factor(speedup.get("total")), percent(group["correct"])]


def _notes(summary: Summary) -> Iterator[str]:
    settings, tokens = summary["settings"], summary["tokens"]
    if summary["answer_hits"] is not None:
        yield (
            f"answer hits {summary['answer_hits']} ({percent(summary['answer_share'])}), "
            f"compute hits {summary['compute_hits']} ({percent(summary['compute_share'])})"
        )
    share = tokens["cached"] / tokens["prompt"] if tokens["cached"] is not None and tokens["prompt"] else None
    yield f"prompt tokens reused {number(tokens['cached'])} of {number(tokens['prompt'])} ({percent(share)})"
    if tokens["drafted"]:
        yield f"draft tokens accepted {number(tokens['accepted'])} of {number(tokens['drafted'])}"
    if not settings.get("target"):
        yield _wrong_hits(summary)
    threshold = f" (at least {F1_THRESHOLD:g})" if settings["judge"] == "f1" else ""
    speedup = settings["speedup"]
    yield (
        f"judge {settings['judge']}{threshold}; speed-up against the {speedup['reference']} "
        f"({speedup['outcome']} per outcome, {speedup['overall']} for all); times in ms, percentiles nearest-rank"
    )
    control = summary["speedup"]["control"]
    if settings["baseline"] and control is None:
        yield "the speed-ups have no control: no miss to compare with its baseline"
    elif control is not None and not 1 / MAX_CONTROL <= control <= MAX_CONTROL:
        yield (
            f"DO NOT TRUST THE SPEED-UPS: misses decoded {control:.2f} times as fast as the baseline, the same "
            "work; the machine's load changed between the two passes (or the first requests were still warming up)"
        )
    late = summary["late_ms"]
    if late and late["p99"] is not None and late["p99"] > LATE_MS:
        yield f"the rate of {settings['rate']:g}/s was not held: p99 of the requests left {millis(late['p99'])} ms late"
    if summary["cost"]:
        cost = summary["cost"]
        yield f"cost {number(cost['total'], 4)} in all, {number(cost['per_1000_requests'], 4)} per 1000 requests"


# How far the decode times of equal work may lie apart before the comparison says more about the machine.
MAX_CONTROL = 1.5
# A request that leaves this much after its due time means that --rate asks for more than --concurrency allows.
LATE_MS = 50.0


def _wrong_hits(summary: Summary) -> str:
    wrong = summary["wrong_hits"]
    semantic = summary["outcomes"]["semantic"]["n"]
    if not semantic:
        return "wrong hits: no semantic answers"
    if not wrong["checked"]:
        return f"wrong hits: unknown, none of {semantic} semantic answers could be checked (try --baseline)"
    low, high = wrong["ci95"]
    by = " and ".join(f"{name} answers" for name, count in wrong["by"].items() if count)
    return (
        f"wrong hits {wrong['wrong']} of {wrong['checked']} checked = {percent(wrong['rate'])} "
        f"(95 % CI {low * 100:.1f}-{high * 100:.1f} %), judged by the {by}"
    )


def _verdict(gate: Summary) -> str:
    met = "unknown, nothing was measured" if gate["value"] is None else f"{gate['value']:.6g}"
    return f"{'passed' if gate['passed'] else 'FAILED'}: {gate['gate']} ({gate['name']} = {met})"


def _side_by_side(summaries: Sequence[Summary]) -> list[str]:
    rows = [[label_of(summary), *(show(value(summary)) for _name, value, show in _FIGURES)] for summary in summaries]
    return table(["run", *(name for name, _value, _show in _FIGURES)], rows)


def number(value: float | None, digits: int = 0) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share * 100:.1f} %"


def millis(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def factor(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def _change(before: float | None, now: float | None) -> str:
    """Relative to before; a share that was 0 has no relative change."""
    return UNKNOWN if before is None or now is None or before == 0 else f"{(now / before - 1) * 100:+.1f} %"


# name, where it is found, how it is written; used for side by side and for --compare
_FIGURES: tuple[tuple[str, Callable[[Summary], float | None], Callable[[float | None], str]], ...] = (
    ("requests", lambda summary: summary["requests"], number),
    ("errors", lambda summary: summary["errors"], number),
    ("answer hits", lambda summary: summary["answer_share"], percent),
    ("compute hits", lambda summary: summary["compute_share"], percent),
    ("wrong hits", lambda summary: summary["wrong_hits"]["rate"], percent),
    ("correct", lambda summary: summary["overall"]["correct"], percent),
    ("TTFT p50", lambda summary: summary["overall"]["ttft_ms"]["p50"], millis),
    ("TTFT p99", lambda summary: summary["overall"]["ttft_ms"]["p99"], millis),
    ("total p50", lambda summary: summary["overall"]["total_ms"]["p50"], millis),
    ("speed-up", lambda summary: summary["speedup"]["overall"], factor),
    ("requests/s", lambda summary: summary["throughput"]["requests_per_s"], lambda value: number(value, 1)),
)
