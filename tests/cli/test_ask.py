"""`semcache ask`: what is sent, what is printed where, and what happens when it goes wrong half-way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from semcache.cli.ask import CacheMode, Strategy
from semcache.wire import protocol
from tests.cli.conftest import Semcache
from tests.cli.fake_daemon import EXPLANATION, RECEIPT, FakeDaemon, error

Process = Callable[..., "subprocess.Popen[str]"]


def test_the_answer_is_all_there_is_on_stdout(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("ask", "capital city of australia?")
    assert (ran.code, ran.out, ran.err) == (0, "Canberra.\u2028\n", "")
    assert daemon.seen == [
        (
            "POST",
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "capital city of australia?"}],
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        )
    ]


def test_json_is_the_receipt(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("ask", "hi", "--json")
    assert json.loads(ran.out) == RECEIPT
    assert ran.err == ""
    assert daemon.seen[0][2]["stream"] is False


def test_no_stream_prints_the_same(semcache: Semcache, daemon: FakeDaemon) -> None:
    assert semcache("ask", "hi", "--no-stream").out == "Canberra.\n"
    assert daemon.seen[0][2]["stream"] is False


def test_every_option_reaches_the_daemon(semcache: Semcache, daemon: FakeDaemon, home: Path) -> None:
    (home / "a.txt").write_text("\ufeffalpha\n", encoding="utf-8")
    semcache(
        *("ask", "Q", "--user", "alice", "--strategy", "global_user", "--model", "mini", "--system", "S"),
        *("--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "7", "--seed", "3"),
        *("--stop", "a", "--stop", "b", "--file", str(home / "a.txt"), "--cache", "lossless", "--no-stream"),
    )  # fmt: skip
    assert daemon.seen[0][2] == {
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q\n\na.txt:\nalpha\n"}],
        "user": "alice",
        "cache_strategy": "global_user",
        "model": "mini",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "seed": 3,
        "stop": ["a", "b"],
        "cache": "lossless",
        "stream": False,
    }


@pytest.mark.parametrize(
    ("flags", "header"),
    [
        (["--refresh"], "no-cache"),
        (["--no-store"], "no-store"),
        (["--cached-only"], "only-if-cached"),
        (["--refresh", "--no-store"], "no-cache, no-store"),
        ([], None),
    ],
)
def test_cache_control(semcache: Semcache, daemon: FakeDaemon, flags: list[str], header: str | None) -> None:
    semcache("ask", "hi", *flags)
    assert daemon.headers[0].get("cache-control") == header


@pytest.mark.parametrize("flags", [["--refresh", "--cached-only"], ["--cache", "off", "--cached-only"]])
def test_contradictions_are_usage_errors(semcache: Semcache, daemon: FakeDaemon, flags: list[str]) -> None:
    assert semcache("ask", "hi", *flags).code == 2
    assert daemon.seen == []


def test_choices_are_those_of_the_wire() -> None:
    assert Strategy.__args__ == protocol.STRATEGIES  # type: ignore[attr-defined]
    assert CacheMode.__args__ == protocol.CACHE_MODES  # type: ignore[attr-defined]


@pytest.mark.parametrize("prompt", [[""], ["  \n"], []])
def test_nothing_to_ask(semcache: Semcache, daemon: FakeDaemon, prompt: list[str]) -> None:
    ran = semcache("ask", *prompt)
    assert ran.code == 2
    assert daemon.seen == []


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_json_cannot_carry(semcache: Semcache, daemon: FakeDaemon, value: str) -> None:
    ran = semcache("ask", "hi", "--temperature", value)
    assert ran.code == 2
    assert "--temperature" in ran.err


def test_a_file_that_cannot_be_read(semcache: Semcache, home: Path) -> None:
    assert "No such file" in semcache("ask", "hi", "--file", str(home / "gone.txt")).err
    (home / "bin").write_bytes(b"\xff\xfe\x00")
    assert semcache("ask", "hi", "--file", str(home / "bin")).code == 2


def test_bytes_that_are_no_text(semcache: Semcache) -> None:
    assert semcache("ask", "hi \udcff").code == 2


def test_the_receipt_line(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("ask", "hi", "--verbose")
    assert ran.err == (
        '◕ semantic 0.962 ← "What is the capital of Australia?" (2 min ago) · 18 of 21 prompt tokens reused'
        " · first token 11 ms · 0.15 s\n"
    )
    assert semcache("ask", "hi", "--verbose", "--quiet").err == ""
    assert semcache("ask", "hi", "--verbose", "--json").err == ""


def test_explain(semcache: Semcache, daemon: FakeDaemon) -> None:
    ran = semcache("ask", "hi", "--explain")
    assert ran.out == "Canberra.\u2028\n"
    for words in ("semantic", "0.9620", "match", "per_user", "e_1", "What is the capital of Australia?"):
        assert words in ran.err


def test_explain_shows_what_was_considered(semcache: Semcache, daemon: FakeDaemon) -> None:
    receipt = {**RECEIPT, "explain": EXPLANATION["candidates"]}
    daemon.stream[-2] = {"choices": [], "usage": RECEIPT["usage"], "semcache": receipt}
    ran = semcache("ask", "hi", "--explain")
    assert daemon.seen[0][2]["explain"] is True
    lines = ran.err.splitlines()
    header = next(line for line in lines if line.lstrip().startswith("score  p(correct)  verdict"))
    served, refused = lines[lines.index(header) + 1 :]
    assert served.split()[:4] == ["0.9620", "0.9910", "served", "e_1"]
    assert "names, question words  What is the capital of Australia? [31m" in served
    assert served.endswith("a differently worded prompt is trusted to mean the same")
    assert refused.split()[:4] == ["0.8740", "–", "refused", "e_2"]
    assert refused.endswith("the prompts name different numbers")
    daemon.replies["/v1/chat/completions"] = {"choices": [], "semcache": receipt}
    ran = semcache("ask", "hi", "--explain", "--json")
    assert json.loads(ran.out)["explain"] == json.loads(json.dumps(EXPLANATION["candidates"]))
    assert ran.err == ""


@pytest.mark.parametrize(("passes", "words"), [(1, " in 1 pass"), (3, " in 3 passes"), (None, "")])
def test_a_draft_tells_its_passes(semcache: Semcache, daemon: FakeDaemon, passes: int | None, words: str) -> None:
    cache = {**RECEIPT["cache"], "outcome": "draft", "draft_tokens": 12, "draft_accepted": 11, "passes": passes}
    daemon.stream[-2] = {"choices": [], "usage": RECEIPT["usage"], "semcache": {**RECEIPT, "cache": cache}}
    assert f" · 11 of 12 draft tokens accepted{words} · " in semcache("ask", "hi", "--verbose").err
    assert f"draft     11 of 12 draft tokens accepted{words}\n" in semcache("ask", "hi", "--explain").err


def test_an_error_in_the_middle_keeps_what_came(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.stream[2:] = [error("engine_error", "out of memory")]
    ran = semcache("ask", "hi")
    assert (ran.code, ran.out, ran.err) == (1, "Can\n", "semcache: out of memory\n")


def test_a_stream_that_just_ends_is_an_error(semcache: Semcache, daemon: FakeDaemon) -> None:
    del daemon.stream[2:]
    ran = semcache("ask", "hi")
    assert (ran.code, ran.out) == (3, "Can\n")


def test_a_loading_daemon_is_waited_for(semcache: Semcache, daemon: FakeDaemon) -> None:
    answer = daemon.replies["/v1/chat/completions"]
    daemon.replies["/v1/chat/completions"] = [(503, error("unavailable", "loading weights 63 %")), answer]
    daemon.replies["/ready"] = [(503, error("unavailable", "loading weights 63 %")), {"status": "ready"}]
    ran = semcache("ask", "hi", "--no-stream")
    assert (ran.code, ran.out, ran.err) == (0, "Canberra.\n", "loading weights 63 %\n")
    assert [path for _method, path, _body in daemon.seen].count("/ready") == 2


def test_a_model_that_cannot_load_is_exit_8(semcache: Semcache, daemon: FakeDaemon) -> None:
    daemon.fails("/v1/chat/completions", 503, "unavailable", "loading")
    daemon.fails("/ready", 500, "model_unavailable", "no weights")
    ran = semcache("ask", "hi")
    assert (ran.code, ran.err) == (8, "semcache: no weights\n")


@pytest.mark.parametrize("stdin", ["devnull", "closed", "inherited"])
def test_stdin_that_says_nothing_is_not_waited_for(process: Process, daemon: FakeDaemon, stdin: str) -> None:
    reader, writer = os.pipe()
    options = {
        "devnull": {"stdin": subprocess.DEVNULL},
        "closed": {"stdin": None, "preexec_fn": lambda: os.close(0)},
        "inherited": {"stdin": reader},  # we, its parent, keep the other end open and never write
    }[stdin]
    ran = process("ask", "hi", **options)
    out, err = ran.communicate(timeout=60)
    os.close(reader)
    os.close(writer)
    assert (ran.returncode, out, err) == (0, "Canberra.\u2028\n", "")
    assert daemon.seen[0][2]["messages"] == [{"role": "user", "content": "hi"}]


def test_piped_stdin_is_appended(process: Process, daemon: FakeDaemon, home: Path) -> None:
    ran = process("ask", "Summarise:", stdin=subprocess.PIPE)
    ran.communicate("one\ntwo\n", timeout=60)
    (home / "f").write_text("from a file")
    with (home / "f").open() as file:
        process("ask", stdin=file).communicate(timeout=60)
    prompts = [body["messages"][-1]["content"] for _method, _path, body in daemon.seen]
    assert prompts == ["Summarise:\n\none\ntwo", "from a file"]


def test_a_slow_pipeline_is_waited_for(daemon: FakeDaemon) -> None:
    subprocess.run("(sleep 2; echo late) | python -m semcache ask Q", shell=True, check=True, timeout=60, env=_venv())
    assert daemon.seen[0][2]["messages"][-1]["content"] == "Q\n\nlate"


def test_binary_stdin_is_a_usage_error(process: Process, daemon: FakeDaemon, home: Path) -> None:
    (home / "bin").write_bytes(b"\xff\xfe")
    with (home / "bin").open() as file:
        ran = process("ask", "Q", stdin=file)
        _out, err = ran.communicate(timeout=60)
    assert ran.returncode == 2
    assert "UTF-8" in err


def test_control_c_cancels_and_is_exit_130(process: Process, daemon: FakeDaemon) -> None:
    daemon.hang_after = 2
    ran = process("ask", "hi")
    assert ran.stdout is not None
    assert ran.stdout.read(3) == "Can"
    ran.send_signal(signal.SIGINT)
    out, err = ran.communicate(timeout=60)
    assert (ran.returncode, out, err) == (130, "\n", "semcache: interrupted\n")
    assert daemon.disconnected.wait(10)


def test_a_reader_that_goes_away_is_no_error(process: Process, daemon: FakeDaemon) -> None:
    daemon.stream[1] = {"choices": [{"delta": {"content": "x" * 200_000}}]}
    reader, writer = os.pipe()
    ran = process("ask", "hi", stdout=writer)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    _out, err = ran.communicate(timeout=60)
    assert (ran.returncode, err) == (0, "")


def on_terminal(process: Process, *arguments: str) -> tuple[int, str]:
    """Exit code and everything a person sees."""
    mine, its = os.openpty()
    ran = process(*arguments, stdin=its, stdout=its, stderr=its)
    os.close(its)
    seen = b""
    with contextlib.suppress(OSError):  # the last holder of a pseudo-terminal closed it
        while piece := os.read(mine, 4096):
            seen += piece
    os.close(mine)
    return ran.wait(60), seen.decode().replace("\r\n", "\n")


def test_on_a_terminal_the_receipt_is_dim_and_the_answer_plain(process: Process, daemon: FakeDaemon) -> None:
    code, seen = on_terminal(process, "ask", "hi")
    assert code == 0
    assert seen.startswith("Canberra.\u2028\n\x1b[2m◕ semantic 0.962 ←")


def test_on_a_terminal_without_a_prompt_it_shows_how(process: Process, daemon: FakeDaemon) -> None:
    code, seen = on_terminal(process, "ask")
    assert code == 2
    assert "git diff | semcache ask" in seen
    assert daemon.seen == []


def _venv() -> dict[str, str]:
    import sys

    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
