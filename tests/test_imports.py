"""What the command line may import: a subprocess says which modules it really loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from semcache.paths import Paths
from tests.cli.fake_daemon import FakeDaemon, Running

HEAVY = {
    "torch",
    "transformers",
    "textual",
    "fastapi",
    "pydantic",
    "numpy",
    "sentence_transformers",
    "uvicorn",
    "sqlite3",
}
# CPython 3.11: --help 331, ask 352 (bare interpreter 33). A jump says that something new is loaded at start.
MAX_MODULES = {"help": 380, "ask": 420}

SCRIPT = """
import json, sys
from semcache.cli.main import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def run(tmp_path: Path, *arguments: str) -> tuple[int, set[str]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SEMCACHE_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=env | {"SEMCACHE_HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    found = json.loads(done.stderr.splitlines()[-1])
    return found["code"], set(found["modules"])


def heavy(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] in HEAVY}


def test_help_is_light(tmp_path: Path) -> None:
    code, modules = run(tmp_path, "--help")
    assert code == 0
    assert heavy(modules) == set()
    assert "httpx" not in modules
    assert "asyncio" not in modules
    assert len(modules) < MAX_MODULES["help"]


def test_version_needs_no_rich(tmp_path: Path) -> None:
    _code, modules = run(tmp_path, "--version")
    assert not {name for name in modules if name.partition(".")[0] in {"rich", "httpx", "asyncio"}}


def test_ask_without_a_daemon_is_light(tmp_path: Path) -> None:
    code, modules = run(tmp_path, "ask", "hi", "--no-autostart")
    assert code == 3
    assert heavy(modules) == set()


def test_ask_with_a_daemon_is_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMCACHE_HOME", str(tmp_path))
    running = Running(FakeDaemon(Paths.resolve().socket))
    code, modules = run(tmp_path, "ask", "hi", "--no-autostart")
    running.stop()
    assert code == 0
    assert heavy(modules) == set()
    assert not {name for name in modules if name.partition(".")[0] in {"rich", "click", "pygments"}}
    assert len(modules) < MAX_MODULES["ask"]


@pytest.mark.parametrize(
    "command", [["replay", "--help"], ["top", "--help"], ["doctor", "--help"], ["daemon", "status"]]
)
def test_every_command_is_light_until_it_works(tmp_path: Path, command: list[str]) -> None:
    _code, modules = run(tmp_path, *command)
    assert heavy(modules) == set()
