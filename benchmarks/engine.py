"""What the KV engine costs and saves, beside its peers: the same weights, the same prompts, in one run.

`python -m benchmarks.engine --shape 135m --prompt-tokens 1024 --streams 1,8 --device cpu [--json FILE] [--plots DIR]`.
Weights are random, prompts are random tokens: only times and equal tokens mean anything here. Always ends with status 0
once it has measured: a missed bar is a result.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import engine_report as report
from benchmarks.machine import machine
from benchmarks.shapes import SHAPES
from semcache.errors import SemcacheError

SCHEMA = "semcache.bench.engine/1"
QUIET_S = 5.0  # at most, before each request: servers go on for a second after an answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 0, or 2 where nothing could be measured."""
    options = _options(arguments)
    from benchmarks.peers.answer import PeerError

    _be_quiet()
    try:
        if options.write_model:
            _write_model(options, options.write_model)
            print(f"wrote {options.write_model}")
            if options.gguf:
                from benchmarks.peers.gguf import write_gguf

                print(f"wrote {write_gguf(options.write_model, options.gguf)}")
            return 0
        found = measure(options)
    except (SemcacheError, PeerError) as error:
        print(f"benchmarks.engine: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load every system, ask them all, print the table and return the report. Raises PeerError."""
    import torch

    from benchmarks.engine_cases import Bench, Plan
    from benchmarks.peers.apart import Apart
    from benchmarks.peers.ours import Ours, Setup
    from benchmarks.peers.stock import make_generate

    if options.threads:
        torch.set_num_threads(options.threads)
    plan = Plan(
        options.prompt_tokens, options.streams, options.stream_prompt_tokens, options.answer_tokens,
        options.gap_prompt_tokens, options.repeats,
    )  # fmt: skip
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semcache-bench-")))
        folder = home / "model"
        if options.shape in SHAPES:
            _say(f"writing random weights of shape {options.shape}")
            with ThreadPoolExecutor(1) as pool:  # what this thread had OpenMP start ends with it
                pool.submit(_write_model, options, folder).result()
        else:
            folder = Path(options.shape)
        setup = Setup(str(folder), options.device, options.dtype, plan.slots, plan.context_tokens)
        ours = Ours(setup, home / "cache")
        stack.callback(ours.close)
        info = ours.engine.info
        stock = (folder, info.device, info.dtype)
        generate = Apart("generate", make_generate, *stock)
        stack.callback(generate.close)
        peers = _peers(options, plan, stock, setup, home, stack)
        about = machine(options.device)
        settings = {
            "shape": options.shape, "parameters": info.num_parameters, "dtype": info.dtype,
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "prefill_chunk_tokens": ours.engine.prefill_chunk_tokens, "max_chunks": ours.engine.max_chunks,
            "products": info.products, "tie_margin": ours.engine.tie_margin, "seed": options.seed,
            **asdict(plan),
        }  # fmt: skip
        for name, value in (about | settings).items():
            print(f"{name:22}{value}")
        bench = Bench(
            plan,
            setup,
            home / "cache",
            ours,
            generate,
            peers,
            num_threads=torch.get_num_threads(),
            say=_say,
            seed=options.seed,
            quiet_s=0 if options.quick else QUIET_S,
        )
        bench.run()
        rows = report.rows_of(bench.seen)
    ratios = report.ratios_of(rows, plan)
    print()
    for line in (*report.table(rows), "", f"at {max(plan.prompt_tokens)} prompt tokens", *report.bars(ratios)):
        print(line)
    if options.plots:
        for path in report.draw(rows, options.plots):
            print(f"wrote {path}")
    return {
        "schema": SCHEMA, "machine": about, "settings": settings, "rows": [asdict(row) for row in rows],
        "ratios": ratios, "bars": report.verdicts(ratios),
    }  # fmt: skip


def _peers(
    options: argparse.Namespace, plan: Any, stock: tuple[Path, str, str], setup: Any, home: Path, stack: ExitStack
) -> list[Any]:
    """Every other system that can be had, each with what it needs; says which cannot."""
    from benchmarks.engine_cases import LLAMA_CPP
    from benchmarks.peers.apart import Apart
    from benchmarks.peers.daemon import start_daemon
    from benchmarks.peers.gguf import write_gguf
    from benchmarks.peers.llama import make_llama
    from benchmarks.peers.server import Server
    from benchmarks.peers.stock import make_batching

    peers: list[Any] = []
    # Twice what the largest step needs, so that prompts seen before can stay.
    capacity = (
        2 * max(*plan.streams, 2) * (max(*plan.prompt_tokens, plan.stream_prompt_tokens) + plan.answer_tokens + 64)
    )
    peers.append(Apart("generate_batch", make_batching, *stock, capacity, 2048))
    if find_spec("llama_cpp") is None or (options.gguf is None and find_spec("gguf") is None):
        _say("llama-cpp-python is not measured: it needs the packages llama-cpp-python and gguf")
    else:
        gguf = options.gguf or write_gguf(Path(setup.folder), home / "model.gguf")
        peers.append(Apart(LLAMA_CPP, make_llama, gguf, plan.context_tokens))
    if options.over_socket:
        socket = stack.enter_context(start_daemon(setup, home / "daemon"))
        peers.append(Server("semcache_socket", "http://semcache", socket=str(socket)))
    for name, url in options.target:
        peers.append(Server(name, url))
    for peer in peers:
        stack.callback(peer.close)
    return peers


def _write_model(options: argparse.Namespace, folder: Path) -> None:
    from benchmarks.peers.folder import write_model

    # Room for what any later run may ask of it.
    write_model(options.shape, folder, device=options.device, context_tokens=max(8192, options.gap_prompt_tokens + 512))


def _be_quiet() -> None:
    """Progress bars and other libraries' advice are no part of the output."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    add = parser.add_argument
    add("--shape", default="135m", metavar="NAME", help=f"{', '.join(SHAPES)}, or a model folder")
    add("--prompt-tokens", type=_numbers, default=(1024,), metavar="N,…")
    add("--streams", type=_numbers, default=(1, 8), metavar="N,…", help="how many requests at once")
    add("--stream-prompt-tokens", type=int, default=128, metavar="N", help="prompt of each of them")
    add("--answer-tokens", type=int, default=64, metavar="N")
    add("--gap-prompt-tokens", type=int, default=4096, metavar="N", help="long prompt beside four streams; 0 for none")
    add("--device", default="cpu", metavar="cpu|cuda")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add("--threads", type=int, default=0, metavar="N", help="torch threads; 0 leaves them as they are")
    add("--repeats", type=int, default=3, metavar="R")
    add("--seed", type=int, default=None, metavar="N", help="of the prompts; by default other ones in every run")
    add("--target", type=_target, action="append", default=[], metavar="NAME=URL", help="an OpenAI-compatible server")
    add("--over-socket", action="store_true", help="also our daemon, from end to end")
    add("--gguf", type=Path, metavar="FILE", help="the model for llama.cpp; written here with --write-model")
    add("--json", type=Path, metavar="FILE")
    add("--plots", type=Path, metavar="DIR")
    add("--write-model", type=Path, metavar="DIR", help="write the shape's model for other servers to load, and end")
    add("--quick", action="store_true", help="a tiny model, short prompts, one repeat: does the benchmark work?")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbits(32)  # a server that was asked before would know the prompts of a fixed one
    if options.quick:
        options.shape, options.repeats, options.prompt_tokens = "tiny", 1, (256,)
        options.stream_prompt_tokens, options.answer_tokens, options.gap_prompt_tokens = 96, 8, 512
    if options.write_model and options.shape not in SHAPES:
        parser.error(f"--write-model: {options.shape!r} is a folder already")
    if min(options.prompt_tokens) <= 64 or options.answer_tokens < 2 or options.repeats < 1:
        parser.error("prompts need more than 64 tokens, answers at least 2, and there must be a repeat")
    return options


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(part) for part in text.split(",")}))
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{numbers[0]} is not at least 1")
    return numbers


def _target(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not name or not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL")
    return name, url


if __name__ == "__main__":
    sys.exit(main())
