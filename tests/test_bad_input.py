"""Bad input and a bad machine: one clear line, the documented exit code, nothing lost and nothing stored."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningDaemon


@pytest.fixture
def home(tmp_path: Path) -> RunningDaemon:
    """A home without a running daemon; commands may start one, which is ended afterwards."""
    return RunningDaemon(tmp_path)


def refused(ran: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert ran.returncode == code, (ran.returncode, ran.stdout, ran.stderr)
    assert ran.stdout == ""
    last = ran.stderr.strip().splitlines()[-1]
    for word in says:
        assert word in last
    assert "Traceback" not in ran.stderr


def test_values_are_checked_by_the_daemon_and_told_in_one_line(shared_daemon: RunningDaemon) -> None:
    cli = shared_daemon.cli
    before = shared_daemon.get("/v1/semcache/status")["entries"]
    refused(cli("ask", ""), 2, "empty")
    refused(cli("ask", "hi", "--temperature", "3"), 2, "temperature", "3")
    refused(cli("ask", "hi", "--strategy", "mine"), 2, "mine", "per_user")
    refused(cli("ask", "hi", "--model", "other"), 1, "other", "mini")
    refused(cli("ask", "word " * 9000), 2, "tokens", "4096")
    refused(cli("ask", "hi", "--user", "a/b"), 2, "a/b")
    refused(cli("ask", "never asked before", "--cached-only"), 5, "no stored answer")
    refused(cli("cache", "show", "e_none"), 1, "e_none")
    assert shared_daemon.get("/v1/semcache/status")["entries"] == before


def test_config(home: RunningDaemon) -> None:
    refused(home.cli("config", "set", "cache.strategyy", "x"), 2, "cache.strategyy", "cache.strategy")
    refused(home.cli("config", "set", "semantic.threshold", "7"), 2, "semantic.threshold", "between 0 and 1")
    refused(home.cli("config", "get", "nonsense"), 2, "nonsense")


def test_a_model_that_is_not_there(home: RunningDaemon) -> None:
    home.cli("config", "set", "model.name", str(home.home / "no-such-model"))
    refused(home.cli("ask", "hi"), 8, "no-such-model")
    home.cli("daemon", "stop")


def test_a_data_folder_that_cannot_be_used(home: RunningDaemon) -> None:
    (home.home / "data").write_text("not a folder")
    refused(home.cli("ask", "hi"), 3, "data")


def test_a_socket_path_that_is_too_long(home: RunningDaemon) -> None:
    refused(home.cli("ask", "hi", "--socket", "/tmp/" + "x" * 120), 2, "socket", "103")


def test_broken_datasets_name_file_row_and_reason(home: RunningDaemon) -> None:
    def replay(name: str, content: bytes) -> subprocess.CompletedProcess[str]:
        (home.home / name).write_bytes(content)
        return home.cli("replay", name)

    refused(replay("cut.json", b'[{"question": "a", "answer"'), 2, "cut.json", "line 1")
    refused(replay("latin.json", '[{"question": "caf\xe9"}]'.encode("latin-1")), 2, "latin.json", "UTF-8")
    refused(replay("row.json", b'[{"question": "a"}, {"question": ""}]'), 2, "row.json", "row 2")
    refused(replay("other.json", b'[{"foo": 1}]'), 2, "other.json", "foo")
    refused(home.cli("replay", "absent.json"), 2, "absent.json")


def test_no_daemon(home: RunningDaemon) -> None:
    refused(home.cli("ask", "hi", "--no-autostart"), 3, "no daemon")
    status = home.cli("daemon", "status")
    assert status.returncode == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB at the data folder's place."""
    folder = tmp_path / "data"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.needs("root")
def test_a_full_disk_costs_hits_and_nothing_else(small_disk: Path) -> None:
    daemon = RunningDaemon(small_disk.parent).start()
    try:
        answers = [daemon.ask(f"What is the capital of country {i}?", max_tokens=4)["answer"] for i in range(40)]
        counters = daemon.get("/v1/semcache/status")["counters"]
        assert counters["write_failures"] > 0
        assert daemon.get("/health")["status"] == "ok"
        again = [daemon.ask(f"What is the capital of country {i}?", max_tokens=4)["answer"] for i in range(40)]
        assert again == answers
        assert daemon.cli("cache", "check").returncode == 0
    finally:
        daemon.stop()


def test_a_damaged_block_is_a_miss_with_a_counter(make_daemon: Callable[..., RunningDaemon]) -> None:
    daemon = make_daemon()
    first = daemon.ask("Who wrote Hamlet?", temperature=0.9, seed=1, max_tokens=6)
    daemon.stop()
    for file in (daemon.home / "data" / "kv").rglob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    daemon.start()
    check = daemon.cli("cache", "check")
    assert check.returncode == 1
    other_seed = daemon.ask("Who wrote Hamlet?", temperature=0.9, seed=2, max_tokens=6)
    assert other_seed["cache"]["prefix_tokens"] == 0
    assert daemon.get("/v1/semcache/status")["counters"]["damaged_blocks"] > 0
    same_seed = daemon.ask("Who wrote Hamlet?", temperature=0.9, seed=1, max_tokens=6, cache="off")
    assert same_seed["answer"] == first["answer"]
    assert daemon.cli("cache", "check", "--fix").returncode == 0
    assert daemon.cli("cache", "check").returncode == 0
    daemon.stop()
