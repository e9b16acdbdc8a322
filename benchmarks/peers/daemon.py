"""Our daemon as a process of its own, on its socket, in a private home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.answer import PeerError
from benchmarks.peers.ours import Setup

_STOP_TIMEOUT_S = 60


@contextmanager
def start_daemon(setup: Setup, home: Path) -> Iterator[Path]:
    """Start it and wait until it is ready; gives its socket and stops it in the end. Raises PeerError."""
    home.mkdir(parents=True, mode=0o700, exist_ok=True)
    socket = home / "api.sock"
    settings = {
        "model.name": setup.folder, "model.device": setup.device, "model.dtype": setup.dtype,
        "engine.slots": setup.slots, "engine.max_context_tokens": setup.context_tokens, "semantic.embedder": "off",
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEMCACHE_")}
    read_fd, write_fd = os.pipe()
    with open(home / "daemon.out", "wb") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "semcache.daemon", "--socket", str(socket), "--ready-fd", str(write_fd),
                *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
            ],
            env={**kept, "SEMCACHE_HOME": str(home)}, stdout=out, stderr=out, pass_fds=[write_fd],
        )  # fmt: skip
    try:
        os.close(write_fd)
        with os.fdopen(read_fd) as pipe:
            phases = [json.loads(line) for line in pipe]
        if not phases or phases[-1]["phase"] != "ready":
            said = (home / "daemon.out").read_text(errors="replace").strip().splitlines()[-1:]
            raise PeerError(f"the daemon did not start: {said}")
        yield socket
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
