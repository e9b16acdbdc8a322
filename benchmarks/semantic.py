"""`python -m benchmarks.semantic`: semantic hits and wrong answers on labelled questions, without a model.

Every arm sees the same questions in the same order with the same vectors; the class of a question is the truth.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.embeddings import embed_all
from benchmarks.machine import machine
from benchmarks.semantic_trace import drift, near_miss, report, zipf
from benchmarks.semantic_trace.arms import Budget
from benchmarks.semantic_trace.campaign import (
    ARMS,
    DEFAULT,
    DEFAULT_BUDGETS,
    LOOSE_HIT_ERROR,
    Embed,
    MakePolicy,
    Seed,
    Settings,
    open_seed,
    reference,
    run_seed,
    say,
    verified,
)
from benchmarks.semantic_trace.compare import compare, wrong_pairs
from benchmarks.semantic_trace.plots import NoPlotsError, draw, need_matplotlib
from benchmarks.semantic_trace.run import Run
from benchmarks.semantic_trace.trace import BadDataError, Pair, Question, read_pairs, read_questions
from semcache.config import SemanticConfig
from semcache.errors import SemcacheError

SCHEMA = "semcache.bench.semantic/1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 0, or 2 for data that cannot be read."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.noise_sample and not options.noise_sample[0].isdecimal():
        parser.error(f"--noise-sample: {options.noise_sample[0]!r} is not a number")
    if options.drift and not options.pairs:
        parser.error("--drift needs --pairs: its second half is made of pairs that are not the same")
    embed: Embed = partial(embed_all, cache_dir=options.cache_dir)
    try:
        if options.plots:
            need_matplotlib()  # not after ten minutes of work
        questions = read_questions(options.questions)
        pairs = read_pairs(options.pairs) if options.pairs else []
        found = measure(questions, pairs, options, embed, verified(options.audit_rate))
    except (BadDataError, NoPlotsError, SemcacheError) as error:
        print(f"benchmarks.semantic: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(
    questions: Sequence[Question], pairs: Sequence[Pair], options: argparse.Namespace, embed: Embed, policy: MakePolicy
) -> dict[str, Any]:
    """Everything that `options` ask for, printed as it is known and returned as the report."""
    settings = Settings(
        options.limit, options.seeds, options.multi_share, options.budgets, audit_rate=options.audit_rate,
        arms=options.arms,
    )  # fmt: skip
    seeds = [open_seed(questions, settings, number, embed) for number in range(settings.seeds)]
    _print(report.streams(seeds))
    table = reference(seeds, settings.thresholds)
    _print(report.reference(table))
    runs = [made for seed in seeds for made in run_seed(seed, settings, policy)]
    _print(report.arms(runs))
    compared = compare(runs, settings.budgets)
    _print(report.comparison(compared))
    found: dict[str, Any] = {
        "schema": SCHEMA, "machine": machine(), "settings": _settings(settings, options),
        "streams": [{"seed": s.number, "requests": len(s.stream), "answerable": s.num_answerable} for s in seeds],
        "reference": table, "arms": [made.row() for made in runs], "comparison": compared,
    }  # fmt: skip
    found |= _modes(questions, pairs, seeds, settings, options, embed, policy)
    if options.noise_sample:
        num = write_wrong_hits(runs, seeds, int(options.noise_sample[0]), Path(options.noise_sample[1]))
        print(f"\n{num} wrong hits written to {options.noise_sample[1]}")
    if options.plots:
        for path in draw(runs, settings.budgets, options.plots):
            print(f"wrote {path}")
    return found


def _modes(
    questions: Sequence[Question], pairs: Sequence[Pair], seeds: Sequence[Seed], settings: Settings,
    options: argparse.Namespace, embed: Embed, policy: MakePolicy,
) -> dict[str, Any]:  # fmt: skip
    """What is asked for beside the stream: near misses, drift, repeats."""
    found: dict[str, Any] = {}
    if pairs and "semcache" in settings.arms:
        say("near misses")
        found["near_miss"] = near_miss.measure(
            pairs, questions, seeds[0].stream, options.pairs_limit, embed, policy, seeds[0].number
        )
        _print(report.near_miss(found["near_miss"]))
    budgets = [DEFAULT, *(Budget(budget, LOOSE_HIT_ERROR) for budget in settings.budgets)]
    if options.drift:
        say("drift")
        found["drift"] = [
            row
            for seed in seeds
            for row in drift.measure(questions, pairs, settings, budgets, embed, policy, seed.number)
        ]
        _print(report.drift(found["drift"]))
    if options.zipf:
        say("repeats")
        found["zipf"] = [row for seed in seeds for row in zipf.measure(seed, budgets, policy)]
        _print(report.zipf(found["zipf"]))
    return found


def write_wrong_hits(runs: Sequence[Run], seeds: Sequence[Seed], num: int, path: Path) -> int:
    """A random sample of distinct wrong hits as JSONL, to be read by a person; the policy's own, or else any arm's."""
    streams = {seed.number: seed.stream for seed in seeds}
    chosen = [made for made in runs if made.arm == "semcache" and made.num_wrong] or runs
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for made in chosen:
        stream = streams[made.seed]
        for asked, stored, score in wrong_pairs(made):
            row = found.setdefault(
                (made.seed, asked, stored),
                {
                    "asked": stream[asked].text, "stored": stream[stored].text, "score": round(score, 4),
                    "asked_class": stream[asked].class_id, "stored_class": stream[stored].class_id, "seed": made.seed,
                    "arms": [],
                },
            )  # fmt: skip
            row["arms"].append({"arm": made.arm, **asdict(made.budget)})
    rows = random.Random("noise").sample(list(found.values()), min(num, len(found)))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def _settings(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    pairs = options.pairs.name if options.pairs else None
    return asdict(settings) | {
        "questions": options.questions.name,
        "pairs": pairs,
        "pairs_limit": options.pairs_limit if pairs else None,
    }


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semantic", description=__doc__)
    add = parser.add_argument
    add("--questions", type=Path, required=True, metavar="FILE", help="rows {question, class_id}, JSONL or JSONL.gz")
    add("--pairs", type=Path, metavar="FILE", help="rows {a, b, same}: near misses, and what --drift needs")
    add("--limit", type=_positive, default=10_000, metavar="N", help="questions of each seed's stream")
    add("--seeds", type=_positive, default=5, metavar="K", help="streams, each drawn and ordered anew")
    add("--multi-share", type=_share, default=0.7, metavar="X", help="share drawn from classes with several wordings")
    add("--budgets", type=_budgets, default=DEFAULT_BUDGETS, metavar="X,…", help="wrong answers per request to allow")
    rate = SemanticConfig.audit_rate
    add("--audit-rate", type=_share, default=rate, metavar="X", help="share of hits audited after the first 150")
    add("--arms", type=_arms, default=ARMS, metavar="NAME,…", help=f"some of {', '.join(ARMS)}")
    add("--pairs-limit", type=_positive, default=2000, metavar="N", help="pairs of each kind for near misses")
    add("--drift", action="store_true", help="change the domain in mid-stream")
    add("--zipf", action="store_true", help="replay with repeats: the exact tier first, with and without aliases")
    add("--noise-sample", nargs=2, metavar=("N", "FILE"), help="write N wrong hits, to be read by a person")
    add("--json", type=Path, metavar="FILE")
    add("--plots", type=Path, metavar="DIR")
    add("--cache-dir", type=Path, metavar="DIR", help="where vectors are kept between runs")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _budgets(text: str) -> tuple[float, ...]:
    return tuple(sorted({_share(part) for part in text.split(",")}))


def _arms(text: str) -> tuple[str, ...]:
    unknown = set(text.split(",")) - set(ARMS)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown arm {sorted(unknown)[0]!r}; one of {', '.join(ARMS)}")
    return tuple(text.split(","))


if __name__ == "__main__":
    sys.exit(main())
