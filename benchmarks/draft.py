"""What a draft saves when so much of it is right, and what a useless one costs.

`python -m benchmarks.draft [--shape 135m|1b|7b|DIR] [--json FILE] [--plots DIR]`. The donor is the model's own answer
with k of its tokens replaced by random other ones, so acceptance is controlled and the text does not matter. Every arm
runs through the real engine thread, without HTTP and without stored KV; arms are interleaved, figures are medians. Ends
with status 1 where a token differs from plain decode's at a margin above the tie margin.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

from benchmarks.machine import machine
from benchmarks.shapes import SHAPES, load_shape
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.sampler import SampleKey, sample_clearly
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import CacheOptions, Donor, End, Event, Message, Request, RequestState, Sampling
from semcache.errors import SemcacheError

SCHEMA = "semcache.bench.draft/1"
NUM_REPLACED = (0, 2, 10, 60)
CHUNK_TOKENS = 128
_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Row:
    """One k: medians in milliseconds, passes of one request, and where the drafted answer is another one."""

    k: int
    passes: int
    passes_plain: int
    total_ms: float
    total_plain_ms: float
    prefill_ms: float  # one prefill of prompt and answer
    ttft_ms: float
    ttft_plain_ms: float
    divergences: int  # repeats whose tokens differ from plain decode's
    max_divergence_margin: float | None  # in logits, at the first different token; None where there is none


@dataclass
class Arms:
    """What was seen for one k, one number for each repeat."""

    drafted: list[Request] = field(default_factory=list)
    plain: list[Request] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


class Bench:
    """One model behind its engine thread, and the requests that are sent to it one by one."""

    def __init__(self, engine: Engine, *, prompt_tokens: int, answer_tokens: int, seed: int = 0) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.prompt = [self._random_token() for _ in range(prompt_tokens)]
        self.answer_tokens = answer_tokens
        self.loop = EngineLoop(lambda progress: engine)
        self.loop.start()

    def close(self) -> None:
        self.loop.stop(_TIMEOUT_S)

    def run(self, prompt: Sequence[int], sampling: Sampling, donor: Sequence[int] | None = None) -> Request:
        """Answer one request from nothing; raises what failed it."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = Request(
            id=f"bench-{self.rng.random()}", user="os:0", model="bench", messages=(Message("user", ""),),
            prompt_tokens=tuple(prompt), sampling=sampling, options=CacheOptions(no_store=True), publish=events.put,
            donor=Donor(tuple(donor), has_ended=True) if donor is not None else None,
        )  # fmt: skip
        self.loop.submit(request, lambda _request, _kv: None, self.loop.served)
        while not isinstance(event := events.get(timeout=_TIMEOUT_S), End):
            pass
        if event.state is not RequestState.FINISHED:
            raise event.error or RuntimeError(f"the request ended as {event.state}")
        return request

    def answer(self, sampling: Sampling, donor: Sequence[int] | None = None) -> Request:
        return self.run(self.prompt, replace(sampling, max_tokens=self.answer_tokens), donor)

    def replaced(self, answer: Sequence[int], k: int) -> list[int]:
        """The answer with k of its tokens replaced by other ones."""
        donor = list(answer)
        for i in self.rng.sample(range(len(donor)), min(k, len(donor))):
            while donor[i] == answer[i]:
                donor[i] = self._random_token()
        return donor

    def margin(self, drafted: Sequence[int], plain: Sequence[int], sampling: Sampling) -> float | None:
        """How clear the first token was in which the answers differ, in logits; None where they are the same."""
        at = next((i for i, (ours, theirs) in enumerate(zip(drafted, plain, strict=True)) if ours != theirs), None)
        if at is None:
            return None
        prefix = self.run([*self.prompt, *plain[:at]], replace(sampling, max_tokens=1))
        key = SampleKey(sampling, sampling.seed or 0, len(self.prompt) + at)
        assert isinstance(prefix.prompt_logits, Tensor)
        return clearness(prefix.prompt_logits, key)

    def _random_token(self) -> int:
        return self.rng.randrange(self.engine.info.vocab_size)


def measure(bench: Bench, sampling: Sampling, repeats: int, counts: Sequence[int] = NUM_REPLACED) -> list[Row]:
    """One row for each k; a first round that is not counted warms everything up and gives the answer to draft."""
    answer = bench.answer(sampling).output_tokens
    whole = [*bench.prompt, *answer]
    prefill_ms: list[float] = []
    arms = {k: Arms() for k in counts}
    for repeat in range(repeats):
        prefill_ms.append(ttft_ms(bench.run(whole, replace(sampling, max_tokens=1))))
        for k, seen in arms.items():
            donor = bench.replaced(answer, k)
            for is_drafted in (repeat % 2 == 0, repeat % 2 == 1):  # neither always runs first
                request = bench.answer(sampling, donor if is_drafted else None)
                (seen.drafted if is_drafted else seen.plain).append(request)
            margin = bench.margin(seen.drafted[-1].output_tokens, seen.plain[-1].output_tokens, sampling)
            seen.margins += [margin] if margin is not None else []
    return [_row(k, seen, statistics.median(prefill_ms)) for k, seen in arms.items()]


def _row(k: int, seen: Arms, prefill_ms: float) -> Row:
    def median(requests: list[Request]) -> tuple[int, float, float]:
        return (
            round(statistics.median(request.num_passes for request in requests)),
            statistics.median(total_ms(request) for request in requests),
            statistics.median(ttft_ms(request) for request in requests),
        )

    passes, total, ttft = median(seen.drafted)
    passes_plain, total_plain, ttft_plain = median(seen.plain)
    return Row(
        k, passes, passes_plain, total, total_plain, prefill_ms, ttft, ttft_plain,
        divergences=len(seen.margins), max_divergence_margin=max(seen.margins, default=None),
    )  # fmt: skip


def clearness(logits: Tensor, key: SampleKey) -> float:
    """The largest tie margin at which the choice from logits [vocab] is still clear, to a thousandth of itself."""
    low, high = 0.0, 1e-6
    while high < 1e6 and next(sample_clearly(logits[None], [key], high)) is not None:
        low, high = high, 2 * high
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if next(sample_clearly(logits[None], [key], middle)) is None else (middle, high)
    return low


def ttft_ms(request: Request) -> float:
    assert request.times.first_token is not None
    return (request.times.first_token - request.times.submitted) * 1e3


def total_ms(request: Request) -> float:
    assert request.times.ended is not None
    return (request.times.ended - request.times.submitted) * 1e3


def table(rows: Sequence[Row]) -> str:
    """Ratios of the medians; times themselves follow the machine and its load."""
    head = f"{'k':>4} {'passes':>7} {'plain':>6} {'passes saved':>13} {'total/prefill':>14} {'total/plain':>12}"
    lines = [f"{head} {'ttft/plain':>11} {'divergences':>12} {'max margin':>11}"]
    for row in rows:
        margin = "-" if row.max_divergence_margin is None else f"{row.max_divergence_margin:.2g}"
        lines.append(
            f"{row.k:>4} {row.passes:>7} {row.passes_plain:>6} {row.passes_plain / row.passes:>12.1f}x "
            f"{row.total_ms / row.prefill_ms:>14.2f} {row.total_ms / row.total_plain_ms:>12.2f} "
            f"{row.ttft_ms / row.ttft_plain_ms:>11.2f} {row.divergences:>12} {margin:>11}"
        )
    return "\n".join(lines)


def sampled_check(bench: Bench) -> tuple[int, int, float | None]:
    """Seeded answers at T = 0.8 with a draft of two wrong tokens: how many, how many differ, and the largest margin."""
    margins, seeds = [], range(2)
    for seed in seeds:
        sampling = Sampling(temperature=0.8, seed=seed)
        plain = bench.answer(sampling).output_tokens
        drafted = bench.answer(sampling, bench.replaced(plain, 2)).output_tokens
        margins.append(bench.margin(drafted, plain, sampling))
    different = [margin for margin in margins if margin is not None]
    return len(seeds), len(different), max(different, default=None)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write what was asked for."""
    args = _arguments(argv)
    sampling = Sampling(temperature=args.temperature, seed=0 if args.temperature else None)
    try:
        loaded = load_shape(args.shape, device=args.device, context_tokens=args.prompt_tokens + args.answer_tokens + 64)
        engine = Engine(loaded, num_slots=1, prefill_chunk_tokens=CHUNK_TOKENS)
    except SemcacheError as error:
        print(error.message, file=sys.stderr)
        return 2
    bench = Bench(engine, prompt_tokens=args.prompt_tokens, answer_tokens=args.answer_tokens)
    try:
        rows = measure(bench, sampling, args.repeats, [min(k, args.answer_tokens) for k in NUM_REPLACED])
        num_sampled, num_different, sampled_margin = sampled_check(bench)
    finally:
        bench.close()
    print(table(rows))
    print(f"T = 0.8, seeded: {num_sampled - num_different} of {num_sampled} answers have the tokens of plain decode")
    margins = [row.max_divergence_margin for row in rows] + [sampled_margin]
    is_kept = all(margin is None or margin <= engine.tie_margin for margin in margins)
    if not is_kept:
        print(f"a token differs at a margin above the tie margin of {engine.tie_margin:g}", file=sys.stderr)
    if args.json:
        body = {
            "schema": SCHEMA, "machine": machine(args.device), "shape": args.shape,
            "settings": {"prompt_tokens": args.prompt_tokens, "answer_tokens": args.answer_tokens,
                         "repeats": args.repeats, "temperature": args.temperature, "dtype": engine.info.dtype,
                         "tie_margin": engine.tie_margin, "prefill_chunk_tokens": CHUNK_TOKENS},
            "rows": [asdict(row) for row in rows],
            "sampled": {"answers": num_sampled, "divergences": num_different, "max_divergence_margin": sampled_margin},
        }  # fmt: skip
        Path(args.json).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    if args.plots:
        plot(rows, Path(args.plots), args.shape)
    return 0 if is_kept else 1


def plot(rows: Sequence[Row], folder: Path, shape: str) -> Path:
    """`draft.png`: total time and passes over k, as shares of plain decode's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    places = range(len(rows))
    axes.bar([x - 0.2 for x in places], [row.total_ms / row.total_plain_ms for row in rows], 0.4, label="total time")
    axes.bar([x + 0.2 for x in places], [row.passes / row.passes_plain for row in rows], 0.4, label="forward passes")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(list(places), [str(row.k) for row in rows])
    axes.set(xlabel="wrong tokens in the draft", ylabel="share of plain decode", title=f"Drafts of a donor ({shape})")
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "draft.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draft", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", default="135m", help=f"{', '.join(SHAPES)} (random weights) or a model folder")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--answer-tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--temperature", type=float, default=0.0, help="of all arms, with seed 0; 0 is greedy")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plots", metavar="DIR")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
