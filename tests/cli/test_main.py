"""Exit codes, error shapes, and global options on both sides of the command."""

from __future__ import annotations

import json

import pytest

from semcache import __version__, errors
from semcache.cli.main import EXIT_CODES
from tests.cli.conftest import Semcache
from tests.cli.fake_daemon import FakeDaemon


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("invalid_value", 400, 2),
        ("context_length_exceeded", 400, 2),
        ("unsupported_parameter", 400, 2),
        ("unauthorized", 401, 1),
        ("forbidden", 403, 2),
        ("not_found", 404, 1),
        ("queue_full", 429, 1),
        ("timeout", 504, 4),
        ("only_if_cached_miss", 504, 5),
        ("protocol_mismatch", 500, 7),
        ("model_unavailable", 500, 8),
        ("engine_error", 500, 1),
        ("store_error", 500, 3),
        ("never_heard_of", 500, 1),
    ],
)
def test_every_error_code_has_its_exit_code(
    semcache: Semcache, daemon: FakeDaemon, code: str, status: int, exit_code: int
) -> None:
    daemon.fails("/v1/chat/completions", status, code, "because of X")
    ran = semcache("ask", "hi")
    assert (ran.code, ran.out, ran.err) == (exit_code, "", "semcache: because of X\n")
    ran = semcache("ask", "hi", "--json")
    assert (ran.code, ran.err) == (exit_code, "")
    assert json.loads(ran.out)["error"]["message"] == "because of X"
    assert set(json.loads(ran.out)["error"]) == {"message", "type", "param", "code"}


def test_every_class_has_a_row_and_the_last_row_is_everything() -> None:
    assert EXIT_CODES[-1] == (errors.SemcacheError, 1)
    order = [cls for cls, _ in EXIT_CODES]
    for index, cls in enumerate(order):
        assert not any(issubclass(cls, earlier) for earlier in order[:index]), f"{cls} is never reached"


def test_no_daemon_is_exit_3(semcache: Semcache) -> None:
    ran = semcache("ask", "hi")
    assert ran.code == 3
    assert ran.out == ""
    assert "semcache daemon start" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("command", [["ps"], ["top"], ["daemon", "status"], ["stats"], ["cache", "ls"]])
def test_looking_without_a_daemon_is_exit_3(semcache: Semcache, command: list[str]) -> None:
    assert semcache(*command).code == 3


def test_other_protocol_is_exit_7(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.protocol = "99"
    ran = semcache("stats")
    assert ran.code == 7
    assert "protocol 99" in ran.err
    daemon.protocol = None
    ran = semcache("stats")
    assert ran.code == 7
    assert "not a semcache daemon" in ran.err


@pytest.mark.parametrize(
    "arguments", [["nope"], ["ask", "--cache", "x", "hi"], ["ask", "--max-tokens", "many", "hi"], ["cache", "rm"]]
)
def test_usage_errors_are_exit_2_on_one_line(semcache: Semcache, arguments: list[str]) -> None:
    ran = semcache(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("semcache: ")
    assert len(ran.err.splitlines()) == 1


def test_usage_errors_name_what_is_allowed_and_honour_json(semcache: Semcache) -> None:
    ran = semcache("ask", "--strategy", "mine", "hi", "--json")
    body = json.loads(ran.out)["error"]
    assert ran.code == 2
    assert body["code"] == "invalid_value"
    assert "per_user" in body["message"]
    assert "mine" in body["message"]


@pytest.mark.parametrize("arguments", [["--json", "cache", "ls"], ["cache", "--json", "ls"], ["cache", "ls", "--json"]])
def test_global_options_at_every_level(semcache: Semcache, daemon: FakeDaemon, arguments: list[str]) -> None:
    assert json.loads(semcache(*arguments).out)["entries"][0]["id"] == "e_1"


def test_a_value_that_looks_like_a_global_option_stays_a_value(semcache: Semcache, daemon: FakeDaemon) -> None:
    assert semcache("ask", "--system=--json", "--", "--url").out == "Canberra.\u2028\n"
    assert daemon.seen[-1][2]["messages"] == [
        {"role": "system", "content": "--json"},
        {"role": "user", "content": "--url"},
    ]


def test_socket_and_url_exclude_each_other(semcache: Semcache) -> None:
    ran = semcache("--socket", "/x.sock", "ask", "hi", "--url", "http://127.0.0.1:1")
    assert ran.code == 2


def test_socket_by_flag_and_environment(
    semcache: Semcache, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMCACHE_SOCKET", str(daemon.socket) + ".other")
    assert semcache("stats").code == 3
    assert semcache("stats", "--socket", str(daemon.socket)).code == 0
    monkeypatch.setenv("SEMCACHE_URL", "http://127.0.0.1:9")
    assert semcache("stats", "--socket", str(daemon.socket)).code == 0
    assert "127.0.0.1:9" in semcache("stats").err


def test_a_socket_path_that_is_too_long_is_a_usage_error(semcache: Semcache) -> None:
    ran = semcache("ask", "hi", "--socket", "/tmp/" + "x" * 200)
    assert ran.code == 2
    assert "205 bytes" in ran.err


def test_verbose_shows_where_it_happened(semcache: Semcache) -> None:
    assert "Traceback" in semcache("--verbose", "ask", "hi").err


def test_version(semcache: Semcache) -> None:
    assert semcache("--version").out == f"semcache {__version__}\n"
    assert semcache("cache", "ls", "--version").out == f"semcache {__version__}\n"


def test_help_names_every_command_and_the_global_options(semcache: Semcache) -> None:
    out = semcache("--help").out
    for word in (
        "ask",
        "replay",
        "top",
        "stats",
        "ps",
        "cache",
        "model",
        "daemon",
        "logs",
        "config",
        "doctor",
        "--url",
    ):
        assert word in out
    assert "--no-autostart" in semcache("cache", "clear", "--help").out


def test_without_a_command_it_shows_its_help(semcache: Semcache) -> None:
    ran = semcache()
    assert ran.code == 2
    assert "Usage" in ran.out + ran.err
