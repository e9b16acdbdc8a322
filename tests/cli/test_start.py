"""Starting the daemon: phases, failures with the end of the log, and two starters at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semcache import errors
from semcache.cli.connect import answers
from semcache.cli.options import Options
from semcache.cli.process import is_locked, locked_pid, wait_gone
from semcache.cli.start import start_daemon
from semcache.paths import Paths
from tests.cli import fake_daemon
from tests.cli.conftest import Semcache

COMMAND = (sys.executable, fake_daemon.__file__)


@pytest.fixture
def start(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def run(mode: str, times: int = 1) -> None:
        monkeypatch.setenv("FAKE_DAEMON", mode)

        async def all_at_once() -> None:
            await asyncio.gather(
                *(
                    start_daemon(Paths.resolve(), Options(), arguments=["--autostarted"], command=COMMAND)
                    for _ in range(times)
                )
            )

        asyncio.run(all_at_once())

    yield run
    pid = locked_pid(Paths.resolve())
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_it_returns_when_the_daemon_is_ready(start: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    start("ready")
    paths = Paths.resolve()
    assert answers(paths.socket)
    assert is_locked(paths.lock_file)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["starting the daemon…", "weights 50%"]
    assert "the last log line" in paths.log_file.read_text()
    assert paths.runtime_dir.stat().st_mode & 0o777 == 0o700


def test_two_starters_make_one_daemon(start: Callable[..., None]) -> None:
    start("ready", times=3)
    assert (Paths.resolve().runtime_dir / "started").read_text() == "x"


def test_one_that_answers_is_enough(start: Callable[..., None]) -> None:
    start("ready")
    start("crash")
    assert (Paths.resolve().runtime_dir / "started").read_text() == "x"


@pytest.mark.parametrize("mode", ["error", "late-error"])
def test_what_the_daemon_reports_is_raised(start: Callable[[str], None], mode: str) -> None:
    with pytest.raises(errors.ModelLoadError, match="no weights in /x"):
        start(mode)


def test_a_command_that_needs_no_model_does_not_wait_for_it(
    home: Path, start: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "late-error")
    asyncio.run(start_daemon(Paths.resolve(), Options(), arguments=[], command=COMMAND, until_ready=False))
    assert answers(Paths.resolve().socket)


@pytest.mark.parametrize("mode", ["crash", "silent"])
def test_an_early_end_shows_the_log(start: Callable[[str], None], capfd: pytest.CaptureFixture[str], mode: str) -> None:
    log = Paths.resolve().log_file
    log.parent.mkdir(parents=True)
    log.write_text("from an earlier run\n")
    with pytest.raises(errors.DaemonUnreachableError, match="status 9" if mode == "crash" else "stopped reporting"):
        start(mode)
    err = capfd.readouterr().err
    assert "the last log line" in err
    assert "earlier" not in err


def test_a_command_that_cannot_be_run(home: Path) -> None:
    with pytest.raises(errors.DaemonUnreachableError, match="cannot start"):
        asyncio.run(start_daemon(Paths.resolve(), Options(), arguments=[], command=["/nonexistent/python"]))


def test_stop_returns_when_the_process_is_gone(start: Callable[[str], None], semcache: Semcache) -> None:
    start("ready")
    paths = Paths.resolve()
    pid = locked_pid(paths)
    assert pid is not None
    # The cardboard daemon does not act on /shutdown, so it is killed in the end.
    ran = semcache("daemon", "status")
    assert ran.code == 0
    assert f"pid {pid}" in ran.out
    os.kill(pid, signal.SIGTERM)
    assert asyncio.run(wait_gone(pid, 20))
    os.waitpid(pid, 0)
    assert not is_locked(paths.lock_file)
    ran = semcache("daemon", "stop")
    assert (ran.code, ran.err) == (0, "no daemon runs\n")


def test_stop_signals_one_that_does_not_listen(home: Path, semcache: Semcache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DAEMON", "silent")
    paths = Paths.resolve()
    paths.runtime_dir.mkdir(parents=True)
    reader, writer = os.pipe()
    child = subprocess.Popen([*COMMAND, "--ready-fd", str(writer)], pass_fds=(writer,), stderr=subprocess.DEVNULL)
    os.close(writer)
    assert os.read(reader, 1) == b""  # it holds the lock when it closes the pipe
    os.close(reader)
    assert semcache("daemon", "status").out.startswith("DAEMON  starting")
    assert semcache("daemon", "stop").code == 0
    assert child.wait(10) == -signal.SIGTERM


def test_status_of_a_stopped_daemon(semcache: Semcache) -> None:
    ran = semcache("daemon", "status")
    assert ran.code == 3
    assert "stopped" in ran.out
    ran = semcache("daemon", "status", "--json")
    assert (ran.code, '"stopped"' in ran.out) == (3, True)


def test_wait_gone_gives_up(home: Path) -> None:
    assert asyncio.run(wait_gone(os.getpid(), 0.05)) is False
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert asyncio.run(wait_gone(child.pid, 5)) is True
