"""Other wordings on the built-in model: what drafts save, and whether they change anything.

`python -m benchmarks.wordings [--datasets support,trivia] [--limit N] [--json FILE]` starts a real daemon with semantic
serving off. Trained wordings are asked first; then each held-out wording is asked twice, side by side: with the cache
off, and with drafts. Prints whether the answers are equal, forward passes and latency as ratios, and how many wordings
were helped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import machine
from semcache.errors import UsageError

SCHEMA = "semcache.bench.wordings/1"
FOLDER = Path(__file__).resolve().parent.parent / "semcache" / "assets" / "datasets"
_MAX_TOKENS = 128


@dataclass
class Row:
    """One dataset's held-out wordings; times and passes are sums over all of them."""

    dataset: str
    wordings: int
    equal: int
    helped: int  # outcome semantic or draft
    outcomes: dict[str, int]
    passes: int
    passes_off: int
    total_ms: float
    total_off_ms: float
    ratio_p50: float  # median over wordings of off / drafted total
    different: list[dict[str, str]]


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    rows = []
    for name in args.datasets.split(","):
        with daemon() as client:
            rows.append(measure(client, name, args.limit))
        _print(rows[-1])
    if args.json:
        body = {"schema": SCHEMA, "machine": machine(), "rows": [asdict(row) for row in rows]}
        Path(args.json).write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(not row.different for row in rows) else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wordings", description=__doc__)
    parser.add_argument("--datasets", default="support,handbook,trivia", help="bundled datasets, with commas between")
    parser.add_argument("--limit", type=int, default=0, help="held-out wordings of each; 0 is all")
    parser.add_argument("--json", metavar="FILE", help="also write the rows")
    return parser.parse_args(argv)


@contextmanager
def daemon(**settings: object) -> Iterator[httpx.Client]:
    """A daemon on the built-in model in a private home that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="semcache-bench-") as home:
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", "semcache.daemon", "--ready-fd", str(write_fd)]
        for key, value in {"semantic.policy": "off", **settings}.items():
            command += ["--set", f"{key}={value}"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("SEMCACHE_")}
        with open(Path(home) / "out", "w", encoding="utf-8") as out:
            process = subprocess.Popen(
                command, env={**env, "SEMCACHE_HOME": home}, stdout=out, stderr=out, pass_fds=[write_fd], cwd=home
            )
        os.close(write_fd)
        with os.fdopen(read_fd) as pipe:
            phases = [json.loads(line) for line in pipe]
        if not phases or phases[-1]["phase"] != "ready":
            raise UsageError(f"the daemon did not start: {(Path(home) / 'out').read_text()[-500:]}")
        transport = httpx.HTTPTransport(uds=str(Path(home) / "run" / "api.sock"))
        try:
            with httpx.Client(transport=transport, base_url="http://semcache", timeout=120) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)


def measure(client: httpx.Client, dataset: str, limit: int) -> Row:
    """Ask the trained wordings, then every held-out one with the cache off and with drafts."""
    rows = json.loads((FOLDER / f"{dataset}.json").read_text(encoding="utf-8"))
    held_out = [row for row in rows if row["split"] == "held_out_wording"][: limit or None]
    groups = {row["group"] for row in held_out}
    for row in rows:
        if row["split"] == "train" and row["group"] in groups:
            ask(client, row, "lossless")
    different, outcomes, ratios = [], dict.fromkeys(("exact", "semantic", "draft", "prefix", "miss"), 0), []
    passes = passes_off = 0
    total_ms = total_off_ms = 0.0
    for number, row in enumerate(held_out):
        # Whoever comes second finds warm processor caches; so they take turns.
        if number % 2:
            off, drafted = ask(client, row, "off"), ask(client, row, "lossless")
        else:
            drafted, off = ask(client, row, "lossless"), ask(client, row, "off")
        outcomes[drafted["cache"]["outcome"]] += 1
        passes += drafted["cache"]["passes"]
        passes_off += off["cache"]["passes"]
        total_ms += drafted["timing_ms"]["total"]
        total_off_ms += off["timing_ms"]["total"]
        ratios.append(off["timing_ms"]["total"] / drafted["timing_ms"]["total"])
        if drafted["answer"] != off["answer"]:
            different.append({"question": row["question"], "off": off["answer"], "drafted": drafted["answer"]})
    return Row(
        dataset, len(held_out), len(held_out) - len(different), outcomes["semantic"] + outcomes["draft"], outcomes,
        passes, passes_off, total_ms, total_off_ms, statistics.median(ratios), different,
    )  # fmt: skip


def ask(client: httpx.Client, row: dict[str, Any], mode: str) -> Any:
    """The receipt of one question."""
    messages = [{"role": "system", "content": row["context"]}] if "context" in row else []
    messages.append({"role": "user", "content": row["question"]})
    reply = client.post("/v1/chat/completions", json={"messages": messages, "cache": mode, "max_tokens": _MAX_TOKENS})
    reply.raise_for_status()
    return reply.json()["semcache"]


def _print(row: Row) -> None:
    print(
        f"{row.dataset}: {row.wordings} held-out wordings; answers equal to --cache off: {row.equal}/{row.wordings}; "
        f"helped {row.helped / row.wordings:.0%}\n"
        f"  forward passes {row.passes_off} -> {row.passes}: {row.passes_off / max(1, row.passes):.1f} x fewer; total "
        f"latency {row.total_off_ms / row.total_ms:.2f} x lower (median wording {row.ratio_p50:.2f} x); outcomes "
        + " ".join(f"{name} {count}" for name, count in row.outcomes.items() if count)
    )
    for one in row.different[:5]:
        print(f"  DIFFERENT {one['question']!r}: off {one['off']!r}, drafted {one['drafted']!r}")


if __name__ == "__main__":
    sys.exit(main())
