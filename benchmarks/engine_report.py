"""Rows, ratios and bars out of what was seen; medians everywhere.

Ratios are of medians or, where a machine that drifts would decide, medians of the ratios within a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine_cases import OFF, SHARED_TOKENS, STOCK, Plan
from benchmarks.engine_rounds import Key, Seen
from benchmarks.peers.answer import Answer

_OURS = "semcache"


@dataclass(frozen=True)
class Row:
    """Times in milliseconds from the moment of asking; None where it was not measured."""

    system: str
    case: str
    prompt_tokens: int
    streams: int
    samples: int
    ttft_ms: float | None
    first_ttft_ms: float | None  # of warm requests in a row only the first
    ttft_through_kv_ms: float | None  # without stored logits: the last chunk is computed
    second_token_ms: float | None
    tpot_ms: float | None
    gap_p99_ms: float | None
    chunk_ms: float | None  # the longest prefill chunk and a decode step, each alone
    step_ms: float | None
    total_ms: float | None
    settled_ms: float | None  # until everything is written too
    tokens_per_s: float | None
    peak_mb: float | None  # beyond what was there before, weights above all
    cached_tokens: int | None
    compared: int
    divergences: int | None  # answers with another token than the one they must equal
    max_divergence_margin: float | None  # in logits of the stock model
    each_ttft_ms: tuple[float | None, ...]  # in the order of asking
    each_total_ms: tuple[float | None, ...]
    each_settled_ms: tuple[float | None, ...]
    each_tpot_ms: tuple[float | None, ...]
    each_round: tuple[int | None, ...]  # equal for what was asked in the same round; None outside of rounds
    each_tokens_per_s: tuple[float | None, ...]  # of all streams that were asked at once
    each_tokens_per_s_round: tuple[int | None, ...]


@dataclass(frozen=True)
class Bar:
    """What a ratio has to be."""

    ratio: str
    at_least: float | None = None
    at_most: float | None = None

    def verdict(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        is_met = value >= (self.at_least or -math.inf) and value <= (self.at_most or math.inf)
        return "met" if is_met else "missed"

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


BARS = (
    Bar("ttft_ram", at_least=100), Bar("ttft_through_kv", at_least=6),
    Bar("second_token_ram", at_least=20), Bar("second_token_disk", at_least=12),
    Bar("second_token_uncached_disk", at_least=12), Bar("shared_prefix", at_least=8),
    Bar("shared_64", at_least=0.98), Bar("miss_ttft", at_most=1), Bar("miss_total", at_most=1),
    Bar("miss_vs_off", at_most=1.03), Bar("written_vs_off", at_most=1.05), Bar("streams8_vs_1", at_least=2),
    Bar("streams8_vs_cb", at_least=1), Bar("gap_vs_chunk_and_step", at_most=1.5),
    # Beside other systems: any that is called so, in this process or as a server.
    Bar("cold_ttft_vs_llama*", at_most=0.7), Bar("cold_ttft_vs_vllm*", at_most=1),
    Bar("tpot_vs_llama*", at_most=1.8), Bar("tpot_vs_vllm*", at_most=0.8),
    Bar("warm_second_token_vs_llama*", at_most=1.2), Bar("restart_vs_llama*", at_most=1),
    Bar("streams8_vs_llama*", at_least=1), Bar("streams8_vs_vllm*", at_least=1),
)  # fmt: skip


def rows_of(seen: Mapping[Key, Seen]) -> list[Row]:
    return [_row(key, found) for key, found in sorted(seen.items())]


def _row(key: Key, seen: Seen) -> Row:
    answers = [answer for sample in seen.samples for answer in sample.answers]
    chunks, steps = zip(*seen.chunk_and_step_ms, strict=True) if seen.chunk_and_step_ms else ((), ())
    cached = [answer.cached_tokens for answer in answers if answer.cached_tokens is not None]
    return Row(
        **key._asdict(), samples=len(seen.samples),
        ttft_ms=_median(a.ttft_ms for a in answers), first_ttft_ms=_median(a.ttft_ms for a in seen.firsts),
        ttft_through_kv_ms=_median(a.ttft_ms for a in seen.through_kv),
        second_token_ms=_median(a.second_token_ms for a in answers), tpot_ms=_median(a.tpot_ms for a in answers),
        gap_p99_ms=_percentile(seen.gaps_ms, 0.99), chunk_ms=_median(chunks), step_ms=_median(steps),
        total_ms=_median(a.total_ms for a in answers), settled_ms=_median(a.settled_ms for a in answers),
        tokens_per_s=_median(_tokens_per_s(sample.answers) for sample in seen.samples),
        peak_mb=_median(sample.peak_mb for sample in seen.samples),
        cached_tokens=round(median(cached)) if cached else None, compared=seen.num_compared,
        divergences=len(seen.margins) if seen.num_compared else None,
        max_divergence_margin=max(seen.margins, default=None),
        each_ttft_ms=tuple(a.ttft_ms for a in answers), each_total_ms=tuple(a.total_ms for a in answers),
        each_settled_ms=tuple(a.settled_ms for a in answers), each_tpot_ms=tuple(a.tpot_ms for a in answers),
        each_round=tuple(sample.round for sample in seen.samples for _ in sample.answers),
        each_tokens_per_s=tuple(_tokens_per_s(sample.answers) for sample in seen.samples),
        each_tokens_per_s_round=tuple(sample.round for sample in seen.samples),
    )  # fmt: skip


def ratios_of(rows: Iterable[Row], plan: Plan) -> dict[str, float | None]:
    """At the longest prompt; the cold side is the faster of our own engine from nothing and `generate()`.

    From nothing means a miss, or with the cache off where these were asked in turn with what they are compared with.
    """
    found = {(row.system, row.case, row.prompt_tokens, row.streams): row for row in rows}
    num = max(plan.prompt_tokens)
    num_streamed, num_shared = plan.stream_prompt_tokens, num + SHARED_TOKENS

    def at(what: str, case: str, system: str = _OURS, num_tokens: int = num, streams: int = 1) -> float | None:
        row = found.get((system, case, num_tokens, streams))
        return getattr(row, what) if row is not None else None

    def cold(what: str) -> float | None:
        return _least(at(what, "miss"), at(what, "cold", "generate"))

    def each(
        what: str, case: str, system: str = _OURS, num_tokens: int = num, streams: int = 1, by: str = "each_round"
    ) -> dict[int, float]:
        """By round."""
        row = found.get((system, case, num_tokens, streams))
        values = zip(getattr(row, by), getattr(row, what), strict=True) if row is not None else ()
        return {number: value for number, value in values if number is not None and value is not None}

    def rates8(case: str, system: str = _OURS) -> dict[int, float]:
        return each("each_tokens_per_s", case, system, num_streamed, 8, by="each_tokens_per_s_round")

    cold_shared = _least(*(at("ttft_ms", "cold", name, num_shared) for name in ("generate", OFF)))
    rate8 = at("tokens_per_s", "miss", num_tokens=num_streamed, streams=8)
    gap = at("gap_p99_ms", "miss", num_tokens=plan.gap_prompt_tokens, streams=4)
    chunk, step = (at(w, "miss", num_tokens=plan.gap_prompt_tokens, streams=4) for w in ("chunk_ms", "step_ms"))
    return {
        "ttft_ram": _over(cold("ttft_ms"), at("ttft_ms", "warm_ram")),
        "ttft_disk": _over(cold("ttft_ms"), at("ttft_ms", "restart")),
        "ttft_through_kv": _over(cold("ttft_ms"), at("ttft_through_kv_ms", "warm_ram")),
        "second_token_ram": _over(cold("second_token_ms"), at("second_token_ms", "warm_ram")),
        "second_token_disk": _over(cold("second_token_ms"), at("second_token_ms", "restart")),
        "second_token_uncached_disk": _over(cold("second_token_ms"), at("second_token_ms", "warm_disk")),
        "shared_prefix": _over(cold_shared, at("ttft_ms", "shared_prefix", num_tokens=num_shared)),
        "shared_64": _paired(
            _faster(each("each_ttft_ms", "shared_64", "generate"), each("each_ttft_ms", "shared_64", OFF)),
            each("each_ttft_ms", "shared_64"),
        ),
        "miss_ttft": _over(at("ttft_ms", "miss"), at("ttft_ms", "cold", "generate")),
        "miss_total": _over(at("total_ms", "miss"), at("total_ms", "cold", "generate")),
        "miss_vs_off": _paired(each("each_total_ms", "miss"), each("each_total_ms", "cold", OFF)),
        "written_vs_off": _paired(each("each_settled_ms", "miss"), each("each_total_ms", "cold", OFF)),
        "streams8_vs_1": _over(rate8, at("tokens_per_s", "miss", num_tokens=num_streamed)),
        "streams8_vs_cb": _over(rate8, at("tokens_per_s", "cold", "generate_batch", num_streamed, 8)),
        "gap_vs_chunk_and_step": _over(gap, chunk + step if chunk is not None and step is not None else None),
    } | {
        f"{what}_vs_{peer}": ratio
        for peer in sorted({row.system for row in found.values()} - {_OURS, OFF, *STOCK})
        for what, ratio in {
            "cold_ttft": _paired(each("each_ttft_ms", "miss"), each("each_ttft_ms", "cold", peer)),
            "tpot": _paired(each("each_tpot_ms", "miss"), each("each_tpot_ms", "cold", peer)),
            "warm_second_token": _over(at("second_token_ms", "warm_ram"), at("second_token_ms", "warm_ram", peer)),
            "restart": _over(at("second_token_ms", "restart"), at("second_token_ms", "restart", peer)),
            "streams8": _paired(rates8("miss"), rates8("cold", peer)),
        }.items()
        if ratio is not None
    }


def verdicts(ratios: Mapping[str, float | None]) -> dict[str, str]:
    found = {name: bar_of(name) for name in ratios}
    return {name: bar.verdict(ratios[name]) for name, bar in found.items() if bar is not None}


def bar_of(ratio: str) -> Bar | None:
    return next((bar for bar in BARS if fnmatchcase(ratio, bar.ratio)), None)


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("system", "system", str), ("case", "case", str), ("prompt", "prompt_tokens", str), ("streams", "streams", str),
    ("cached", "cached_tokens", str), ("TTFT", "ttft_ms", "{:.1f}".format),
    ("1st", "first_ttft_ms", "{:.1f}".format), ("by KV", "ttft_through_kv_ms", "{:.1f}".format),
    ("2nd token", "second_token_ms", "{:.1f}".format),
    ("TPOT", "tpot_ms", "{:.1f}".format), ("total", "total_ms", "{:.0f}".format),
    ("written", "settled_ms", "{:.0f}".format), ("tokens/s", "tokens_per_s", "{:.1f}".format),
    ("gap p99", "gap_p99_ms", "{:.1f}".format), ("peak MB", "peak_mb", "{:.0f}".format),
    ("other/of", "divergences", str), ("margin", "max_divergence_margin", "{:.2g}".format),
)  # fmt: skip


def table(rows: Iterable[Row]) -> list[str]:
    """Milliseconds; `other/of` is how many answers differ from what they must equal, of how many compared."""
    cells = [[name for name, _, _ in _COLUMNS]]
    for row in rows:
        values = asdict(row)
        line = ["–" if values[key] is None else show(values[key]) for _, key, show in _COLUMNS]
        if row.divergences is not None:
            line[-2] += f"/{row.compared}"
        cells.append(line)
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    return [
        "  ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in columns)
        for columns in (list(enumerate(zip(line, widths, strict=True))) for line in cells)
    ]


def bars(ratios: Mapping[str, float | None]) -> list[str]:
    """One line for each ratio: value, bar, met or missed."""
    lines = []
    for name, value in ratios.items():
        text = "–" if value is None else f"{value:.3g}"
        bar = bar_of(name)
        lines.append(f"{name:28}{text:>8}" + (f"   bar {bar!s:8} {bar.verdict(value)}" if bar is not None else ""))
    return lines


def draw(rows: Iterable[Row], folder: Path) -> list[Path]:
    """One picture for each prompt length: TTFT and second token of every system and case, on a logarithmic axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    alone = [row for row in rows if row.streams == 1 and row.ttft_ms is not None]
    paths = []
    for num_tokens in sorted({row.prompt_tokens for row in alone}):
        some = [row for row in alone if row.prompt_tokens == num_tokens]
        figure, axes = pyplot.subplots(figsize=(9, 1 + 0.4 * len(some)))
        names = [f"{row.system} {row.case}" for row in some]
        axes.barh(names, [row.second_token_ms or math.nan for row in some], color="tab:gray", label="second token")
        axes.barh(names, [row.ttft_ms or math.nan for row in some], color="tab:blue", label="first token")
        axes.set(xscale="log", xlabel="milliseconds from asking", title=f"{num_tokens} prompt tokens")
        axes.invert_yaxis()
        axes.legend()
        paths.append(folder / f"engine-{num_tokens}.png")
        figure.savefig(paths[-1], dpi=120, bbox_inches="tight")
        pyplot.close(figure)
    return paths


def _tokens_per_s(answers: list[Answer]) -> float | None:
    num_tokens = sum(len(answer.stamps) for answer in answers)
    took_s = max(answer.ended for answer in answers) - min(answer.started for answer in answers)
    return num_tokens / took_s if num_tokens else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _percentile(values: list[float], share: float) -> float | None:
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _faster(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """The less of the two in each round that has both: one alone could be the slower one."""
    return {number: min(one[number], other[number]) for number in one.keys() & other.keys()}


def _paired(above: Mapping[int, float], below: Mapping[int, float]) -> float | None:
    """The median ratio of what was asked in the same round; a round in which one of them is missing says nothing."""
    return _median(_over(above[number], below[number]) for number in above.keys() & below.keys())


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
