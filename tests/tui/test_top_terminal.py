"""`semcache top` in a real terminal, against the real daemon."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningDaemon

WIDTH, HEIGHT = 120, 34
TIMEOUT_S = 60


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, socket: Path, command: str, daemon: RunningDaemon) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        self._env = {**daemon.env, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        self.run("new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), command)

    def run(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], env=self._env, capture_output=True, text=True, check=False)
        return done.stdout

    def until(self, shown: Callable[[str], bool]) -> str:
        """The first screen that satisfies the condition; looks again as soon as tmux has answered."""
        deadline = time.monotonic() + TIMEOUT_S
        screen = ""
        while time.monotonic() < deadline:
            screen = self.run("capture-pane", "-p")
            if shown(screen):
                return screen
        raise AssertionError(f"never shown; the last screen was:\n{screen}")


@pytest.fixture
def terminal(shared_daemon: RunningDaemon, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(
        tmp_path / "tmux", f"{sys.executable} -m semcache top; echo ended with $?; read -r _", shared_daemon
    )
    yield opened
    opened.run("kill-server")


@pytest.mark.needs("tmux")
def test_ask_look_and_leave(terminal: Terminal, shared_daemon: RunningDaemon) -> None:
    shared_daemon.ask("What is the capital of Japan?", user="terminal")
    screen = terminal.until(lambda text: "● ready" in text and "What is the capital" in text)
    assert "answer hits" in screen
    assert "compute hits" in screen
    assert max(map(len, screen.splitlines())) <= WIDTH
    terminal.run("send-keys", "a")
    terminal.run("send-keys", "-l", "What is the capital of Canada?")
    terminal.run("send-keys", "Enter")
    terminal.until(lambda text: "Ottawa" in text and "first token" in text)
    # An escape that is followed at once by a letter is that letter with alt.
    terminal.run("send-keys", "Escape")
    terminal.until(lambda text: "q Quit" in text)
    terminal.run("send-keys", "q")
    terminal.until(lambda text: "ended with 0" in text)
