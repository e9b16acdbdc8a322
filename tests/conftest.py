"""Fixtures that start the real thing: the daemon as a process on a Unix socket in a private home."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Before torch is imported, and for every process that a test starts: threads that wait for each other on processors
    # that others use take many times as long as one thread alone.
    num_threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
# Everything that may be asked for with the marker `needs`, and how to see whether it is there.
AVAILABLE: dict[str, Callable[[], bool]] = {
    "tmux": lambda: shutil.which("tmux") is not None,
    "root": lambda: os.getuid() == 0,
    "not_root": lambda: os.getuid() != 0,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = set(os.environ.get("REQUIRE", "").replace(",", " ").split())
    for mark in item.iter_markers("needs"):
        for what in mark.args:
            if not AVAILABLE[what]():
                if what in required:
                    pytest.fail(f"REQUIRE names {what}, which is absent", pytrace=False)
                pytest.skip(f"needs {what}")
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@dataclass
class RunningDaemon:
    """A daemon process and how to talk to it."""

    home: Path
    settings: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SEMCACHE_")}
        return {**kept, "SEMCACHE_HOME": str(self.home), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}

    @property
    def socket(self) -> Path:
        return self.home / "run" / "api.sock"

    @property
    def log(self) -> str:
        return (self.home / "daemon.out").read_text() if (self.home / "daemon.out").exists() else ""

    def start(self) -> RunningDaemon:
        """Start and wait for the readiness pipe to say so."""
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", "semcache.daemon", "--ready-fd", str(write_fd)]
        for key, value in self.settings.items():
            command += ["--set", f"{key}={value}"]
        with open(self.home / "daemon.out", "a") as out:
            self.process = subprocess.Popen(
                command, env=self.env, stdout=out, stderr=out, pass_fds=[write_fd], text=True, cwd=self.home
            )
        os.close(write_fd)
        with os.fdopen(read_fd) as pipe:
            phases = [json.loads(line) for line in pipe]
        assert phases, self.log
        assert phases[-1]["phase"] == "ready", (phases[-1], self.log)
        return self

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0, self.log

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def http(self) -> httpx.Client:
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://semcache", timeout=120
        )

    def ask(self, prompt: str, *, system: str | None = None, headers: dict[str, str] | None = None, **body: Any) -> Any:
        """The receipt of one chat completion."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        with self.http() as client:
            reply = client.post("/v1/chat/completions", json={"messages": messages, **body}, headers=headers)
        assert reply.status_code == 200, reply.text
        return reply.json()["semcache"]

    def get(self, path: str) -> Any:
        with self.http() as client:
            reply = client.get(path)
        assert reply.status_code == 200, reply.text
        return reply.json()

    @contextmanager
    def happenings(self, kind: str) -> Iterator[Iterator[dict[str, Any]]]:
        """`cache` events of one kind (audit, turn) as they come, from before the block on."""
        with self.http() as client, client.stream("GET", "/v1/semcache/events") as reply:
            lines = reply.iter_lines()
            assert next(lines) == ": connected"
            told = (json.loads(next(lines).removeprefix("data: ")) for line in lines if line == "event: cache")
            yield (event for event in told if event["kind"] == kind)

    def cli(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the command line against this home."""
        return subprocess.run(
            [sys.executable, "-m", "semcache", *arguments],
            env=self.env, cwd=self.home, capture_output=True, text=True, timeout=timeout, check=False,
            **({"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}),
        )  # fmt: skip


def _daemons() -> Iterator[Callable[..., RunningDaemon]]:
    """Start daemons in homes of their own; all are ended afterwards."""
    started: list[RunningDaemon] = []
    homes: list[Path] = []

    def make(**settings: Any) -> RunningDaemon:
        # Not tmp_path: a socket path may be no longer than 103 bytes.
        homes.append(Path(tempfile.mkdtemp(prefix="semcache-test-")))
        running = RunningDaemon(homes[-1], {key.replace("__", "."): value for key, value in settings.items()})
        started.append(running)
        return running.start()

    yield make
    for running in started:
        if running.process is not None and running.process.poll() is None:
            running.kill()
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)


make_daemon = pytest.fixture(_daemons, name="make_daemon")
make_module_daemon = pytest.fixture(_daemons, scope="module", name="make_module_daemon")


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[RunningDaemon]:
    """One daemon on the built-in model for tests that only ask; each uses users of its own."""
    home = Path(tempfile.mkdtemp(prefix="semcache-test-"))
    running = RunningDaemon(home).start()
    yield running
    running.stop()
    shutil.rmtree(home, ignore_errors=True)
