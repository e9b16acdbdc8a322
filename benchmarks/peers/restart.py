"""One request in a process of its own, over a cache that another process filled: the first after a restart.

The model is loaded before the clock starts, as the daemon loads it before it is ready.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.peers.answer import Answer, PeerError
from benchmarks.peers.ours import Ours, Setup

_TIMEOUT_S = 1800


def ask_after_restart(
    setup: Setup, home: Path, prompt: Sequence[int], max_tokens: int, *, num_threads: int, stored_logits: bool = True
) -> Answer:
    """What a new process answers, sampled as a warm request is; the cache must be closed here. Raises PeerError."""
    task = {
        "setup": asdict(setup), "home": str(home), "prompt": list(prompt), "max_tokens": max_tokens,
        "num_threads": num_threads, "stored_logits": stored_logits,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.restart"], input=json.dumps(task), text=True, capture_output=True,
        timeout=_TIMEOUT_S, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if done.returncode:
        raise PeerError(f"the new process failed: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Answer(**{**found, "tokens": tuple(found["tokens"]), "stamps": tuple(found["stamps"])})


def main() -> None:
    import torch

    task = json.load(sys.stdin)
    torch.set_num_threads(task["num_threads"])
    ours = Ours(Setup(**task["setup"]), Path(task["home"]))
    try:
        [answer] = ours.ask(
            [task["prompt"]], task["max_tokens"], sampled=True, store=False, stored_logits=task["stored_logits"]
        )
    finally:
        ours.close()
    print(json.dumps(asdict(answer)))


if __name__ == "__main__":
    main()
