"""A private home for every test, a fake daemon where one is wanted, and the command line as a function."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from semcache.cli.main import main
from semcache.paths import Paths
from tests.cli.fake_daemon import FakeDaemon, Running


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Semcache = Callable[..., Ran]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("SEMCACHE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SEMCACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def daemon(home: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(Paths.resolve().socket)
    running = Running(fake)
    yield fake
    running.stop()


@pytest.fixture
def semcache(capfd: pytest.CaptureFixture[str]) -> Semcache:
    """Run one command line in this process; it may never start a daemon."""

    def run(*arguments: str) -> Ran:
        capfd.readouterr()
        # After the command, or before everything where the line starts with an option.
        at = int(bool(arguments) and not arguments[0].startswith("-"))
        code = main([*arguments[:at], "--no-autostart", *arguments[at:]] if arguments else [])
        return Ran(code, *capfd.readouterr())

    return run


@pytest.fixture
def process(home: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start one command line as a process of its own."""

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([sys.executable, "-m", "semcache", *arguments], text=True, **pipes)

    return start
