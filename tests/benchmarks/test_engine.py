"""The engine benchmark measures what it says: schema, cases, comparisons; never how long anything takes."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import engine
from benchmarks.engine_cases import LLAMA_CPP, NUM_COLD, OFF, Plan
from benchmarks.engine_report import Bar, bars, draw, ratios_of, rows_of, table
from benchmarks.engine_rounds import Key, Rounds, Sample, Seen
from benchmarks.peers.answer import Answer, PeerError
from benchmarks.peers.llama import LlamaCpp
from benchmarks.peers.server import Server
from benchmarks.peers.stock import Generate

# The contract's names, word for word.
ROW = (
    "system case prompt_tokens streams ttft_ms ttft_through_kv_ms second_token_ms tpot_ms gap_p99_ms tokens_per_s "
    "peak_mb divergences max_divergence_margin"
).split()
RATIOS = (
    "ttft_ram ttft_disk second_token_ram second_token_disk shared_prefix shared_64 miss_ttft miss_total streams8_vs_1 "
    "streams8_vs_cb"
).split()
CASES = {"cold", "warm_ram", "warm_disk", "restart", "shared_prefix", "shared_64", "miss"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("engine") / "engine.json"
    assert engine.main(["--quick", "--json", str(path)]) == 0
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def row(found: dict[str, Any], system: str, case: str, streams: int = 1, tokens: int = 256) -> dict[str, Any]:
    [only] = [
        r for r in found["rows"]
        if (r["system"], r["case"], r["streams"], r["prompt_tokens"]) == (system, case, streams, tokens)
    ]  # fmt: skip
    return dict(only)


def test_the_report_has_every_name_of_the_contract(found: dict[str, Any]) -> None:
    assert found["schema"] == "semcache.bench.engine/1"
    assert found["machine"]["torch"]
    assert all(name in r for r in found["rows"] for name in ROW)
    assert set(RATIOS) <= set(found["ratios"])
    assert all(math.isfinite(found["ratios"][name]) and found["ratios"][name] > 0 for name in RATIOS)


def test_every_case_is_measured_on_our_system_and_the_peers_are_beside_it(found: dict[str, Any]) -> None:
    ours = {r["case"] for r in found["rows"] if r["system"].startswith("semcache")}
    assert ours == CASES
    always = {"semcache", "semcache_off", "generate", "generate_batch"}
    assert {r["system"] for r in found["rows"]} - {LLAMA_CPP} == always  # it is there where its package is
    with_stores = row(found, "semcache", "miss", streams=4, tokens=512)
    without = row(found, "semcache_off", "cold", streams=4, tokens=512)
    assert all(r[name] > 0 for r in (with_stores, without) for name in ("gap_p99_ms", "chunk_ms", "step_ms"))
    # Asked in turn, so that none is compared with another moment.
    assert len({row(found, name, "shared_64")["samples"] for name in ("semcache", "semcache_off", "generate")}) == 1
    in_rounds = [row(found, name, "miss" if name == "semcache" else "cold") for name in ("semcache", OFF)]
    assert all(r["each_round"] == in_rounds[0]["each_round"] and r["samples"] == NUM_COLD for r in in_rounds)
    for name in {r["system"] for r in found["rows"]} & {LLAMA_CPP}:
        assert row(found, name, "cold")["each_round"] == in_rounds[0]["each_round"]
        assert found["ratios"][f"cold_ttft_vs_{name}"] > 0 < found["ratios"][f"tpot_vs_{name}"]
    assert row(found, "semcache", "warm_ram")["ttft_through_kv_ms"] > 0


def test_warm_is_warm_and_cold_is_cold(found: dict[str, Any]) -> None:
    """Otherwise every ratio would be about something else."""
    for case in ("warm_ram", "warm_disk", "restart"):
        assert row(found, "semcache", case)["cached_tokens"] == 256
    assert row(found, "semcache", "shared_prefix", tokens=320)["cached_tokens"] == 256
    assert row(found, "semcache", "miss")["cached_tokens"] == 0
    assert row(found, "semcache_off", "cold")["cached_tokens"] == 0


def test_answers_are_compared_and_differ_only_where_the_model_is_undecided(found: dict[str, Any]) -> None:
    ours = [r for r in found["rows"] if r["system"] == "semcache" and r["case"] != "cold" and r["ttft_ms"]]
    # One at a time is what the others are compared with.
    assert all(r["compared"] > 0 for r in ours if (r["prompt_tokens"], r["streams"]) != (96, 1))
    for r in ours:
        assert r["divergences"] in (0, None) or r["max_divergence_margin"] <= found["settings"]["tie_margin"]
    for case in ("warm_ram", "warm_disk", "restart"):  # bit-identical logits and a seed: not even ties
        assert row(found, "semcache", case)["divergences"] == 0


# The arithmetic of the report, on made-up times

PLAN = Plan((100,), (1, 8), 50, 4, 400, 1)


def answer(*stamps: float, ended: float = 1.0, settled: float | None = None, cached: int | None = None) -> Answer:
    return Answer(tuple(range(len(stamps))), 0.0, stamps, ended, settled, cached)


def seen(*answers: Answer, **more: Any) -> Seen:
    """One answer in each round."""
    return Seen(samples=[Sample([one], 1.0, number) for number, one in enumerate(answers)], **more)


def test_ratios_use_the_faster_cold_side_and_medians() -> None:
    found = {
        Key("semcache", "miss", 100, 1): seen(answer(0.5, 0.6, ended=1.2, settled=1.3)),
        Key("semcache_off", "cold", 100, 1): seen(answer(0.5, 0.6, ended=1.0)),
        Key("generate", "cold", 100, 1): seen(*(answer(t, t + 0.1, ended=2.0) for t in (9.0, 0.4, 0.3))),
        Key("semcache", "warm_ram", 100, 1): seen(answer(0.004, 0.05), through_kv=[answer(0.1)]),
        Key("semcache", "restart", 100, 1): seen(answer(0.04, 0.1)),
        **{
            Key(name, "shared_64", 100, 1): seen(answer(t))
            for name, t in (("semcache", 0.5), ("semcache_off", 0.4), ("generate", 0.45))
        },
        Key("semcache", "miss", 50, 1): seen(answer(0.5, ended=1.0)),
        Key("semcache", "miss", 50, 8): Seen([Sample([answer(0.5, ended=2.0) for _ in range(8)], None)]),
        Key("generate_batch", "cold", 50, 8): Seen([Sample([answer(0.5, ended=1.0) for _ in range(8)], None)]),
        Key("semcache", "miss", 400, 4): Seen(gaps_ms=[10.0] * 99 + [30.0], chunk_and_step_ms=[(6.0, 2.0)]),
    }
    ratios = ratios_of(rows_of(found), PLAN)
    assert ratios == pytest.approx(
        {
            "ttft_ram": 100, "ttft_disk": 10, "ttft_through_kv": 4, "second_token_ram": 10, "second_token_disk": 5,
            "second_token_uncached_disk": None, "shared_prefix": None, "shared_64": 0.8, "miss_ttft": 1.25,
            "miss_total": 0.6, "miss_vs_off": 1.2, "written_vs_off": 1.3, "streams8_vs_1": 4, "streams8_vs_cb": 0.5,
            "gap_vs_chunk_and_step": 1.25,
        }
    )  # fmt: skip
    said = "\n".join(bars(ratios))
    assert "ttft_ram                         100   bar >= 100   met" in said
    assert "miss_ttft                       1.25   bar <= 1     missed" in said
    assert "shared_prefix                      –   bar >= 8     not measured" in said


def test_small_differences_are_taken_within_a_round() -> None:
    """Medians of each side would say otherwise where the machine drifted between the rounds."""
    found = {
        Key("semcache", "miss", 100, 1): seen(*(answer(0.1, ended=t, settled=t) for t in (1.1, 2.0, 3.3))),
        Key("semcache_off", "cold", 100, 1): seen(*(answer(0.1, ended=t) for t in (1.0, 2.0, 3.2))),
    }
    found[Key("semcache", "shared_64", 100, 1)] = seen(*(answer(t) for t in (1.0, 4.0, 2.0)))
    found[Key("semcache_off", "shared_64", 100, 1)] = seen(*(answer(t) for t in (0.5, 9.0, 2.0)))
    found[Key("generate", "shared_64", 100, 1)] = seen(*(answer(t) for t in (0.9, 3.6, 9.0)))
    ratios = ratios_of(rows_of(found), PLAN)
    assert ratios["miss_vs_off"] == ratios["written_vs_off"] == pytest.approx(3.3 / 3.2)
    assert ratios["shared_64"] == pytest.approx(0.9)


def test_streams_are_paired_by_their_round_and_not_by_their_answers() -> None:
    def at_once(ended: float, number: int) -> Sample:
        return Sample([answer(0.5, ended=ended) for _ in range(8)], None, number)

    found = {
        Key("semcache", "miss", 50, 8): Seen([at_once(2.0, 1), at_once(6.0, 2), at_once(3.0, 3)]),
        Key("vllm", "cold", 50, 8): Seen([at_once(4.0, 2), at_once(3.3, 3)]),  # not in the first round
    }
    assert ratios_of(rows_of(found), PLAN)["streams8_vs_vllm"] == pytest.approx((4 / 6 + 1.1) / 2)


def test_the_table_says_how_many_answers_differ(tmp_path: Path) -> None:
    rows = rows_of({Key("semcache", "warm_ram", 100, 1): seen(answer(0.1, 0.2), num_compared=5, margins=[0.25])})
    assert table(rows)[1].split()[-2:] == ["1/5", "0.25"]
    assert [path.name for path in draw(rows, tmp_path)] == ["engine-100.png"]


def test_a_bar_may_be_met_exactly() -> None:
    assert Bar("x", at_least=2).verdict(2.0) == Bar("x", at_most=2).verdict(2.0) == "met"
    assert Bar("x", at_least=2).verdict(1.99) == Bar("x", at_most=2).verdict(2.01) == "missed"
    assert Bar("x", at_most=2).verdict(None) == "not measured"


@pytest.mark.parametrize(
    "wrong",
    [["--target", "no-url"], ["--prompt-tokens", "64"], ["--streams", "0"], ["--shape", "x", "--write-model", "y"]],
)
def test_a_wrong_command_line_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        engine.main(wrong)
    assert "error" in capsys.readouterr().err


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.main(["--shape", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("benchmarks.engine: ")


# Servers


class Handler(BaseHTTPRequestHandler):
    """Says what was asked in as many chunks as were asked for; refuses what the server's `refuses` names."""

    server: Any

    def do_GET(self) -> None:
        self._send(200, b'{"data": [{"id": "m"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = "chat" if "messages" in body else "ids" if isinstance(body["prompt"], list) else "text"
        self.server.asked.append((self.path, kind))
        if kind in self.server.refuses:
            self._send(404 if kind == "text" else 400, b"{}")
            return
        piece = {"delta": {"content": "1 "}} if kind == "chat" else {"text": "1 "}
        chunks: list[dict[str, Any]] = [{"choices": [piece]} for _ in range(body["max_tokens"])]
        usage = {"prompt_tokens_details": {"cached_tokens": 7}}
        chunks += [{"choices": [{"delta": {}, "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
        self._send(200, b"".join(f"data: {json.dumps(c)}\n\n".encode() for c in chunks) + b"data: [DONE]\n\n")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.refuses = [], ()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("refuses", "ways"),
    [((), ["ids"]), (("ids",), ["ids", "text"]), (("ids", "text"), ["ids", "text", "chat"])],
)
def test_a_server_gets_prompts_in_the_first_way_it_takes(web: Any, refuses: tuple[str, ...], ways: list[str]) -> None:
    web.refuses = refuses
    server = Server("peer", f"http://127.0.0.1:{web.server_port}/v1")
    for _ in range(2):
        [got] = server.ask([[1, 2, 3, 4]], 5)
        # Behind a chat template it is another prompt's answer, which nothing may be compared with.
        comparable = () if ways[-1] == "chat" else (1,) * 5
        assert (got.tokens, len(got.stamps), got.cached_tokens) == (comparable, 5, 7)
        assert got.started <= got.stamps[0] <= got.stamps[-1] <= got.ended
    server.close()
    assert [kind for _, kind in web.asked] == [*ways, ways[-1]]


def test_a_server_that_refuses_everything_is_named(web: Any) -> None:
    web.refuses = ("ids", "text", "chat")
    server = Server("peer", f"http://127.0.0.1:{web.server_port}")
    with pytest.raises(PeerError, match="peer: /v1/chat/completions gave 400"):
        server.ask([[1, 2, 3, 4]], 5)
    server.close()


def test_a_peer_that_fails_leaves_a_gap_and_ours_may_not(web: Any) -> None:
    web.refuses = ("ids", "text", "chat")
    server, said = Server("peer", f"http://127.0.0.1:{web.server_port}"), list[str]()
    rounds = Rounds("semcache", Generate(None), "cpu", {}, say=said.append, quiet_s=0)
    key = Key("peer", "cold", 4, 1)
    assert rounds.record(key, lambda: server.ask([[1, 2, 3, 4]], 5)) == []
    assert key not in rounds.seen
    assert said == ["peer: /v1/chat/completions gave 400: {}"]
    with pytest.raises(PeerError):
        rounds.record(key._replace(system="semcache"), lambda: server.ask([[1, 2, 3, 4]], 5))
    server.close()


def test_nobody_at_the_address_is_a_peer_error() -> None:
    with pytest.raises(PeerError, match="gives no model"):
        Server("peer", "http://127.0.0.1:9")


def test_llama_cpp_is_asked_for_token_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package is an edge of our world and rarely there."""
    asked: list[tuple[list[int], float]] = []

    class Llama:
        def __init__(self, **settings: Any) -> None:
            assert settings["n_ctx"] == 64

        def generate(self, tokens: list[int], *, temp: float, top_k: int, reset: bool) -> Iterator[int]:
            asked.append((tokens, temp))
            yield from range(100)

        def close(self) -> None:
            asked.append(([], -1.0))

    module = type("llama_cpp", (), {"Llama": Llama, "GGML_TYPE_F32": 0})
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", module)
    llama = LlamaCpp(tmp_path / "model.gguf", context_tokens=64)
    [got] = llama.ask([[1, 2, 3]], 4)
    llama.close()
    assert (got.tokens, len(got.stamps)) == ((0, 1, 2, 3), 4)
    assert asked == [([1, 2, 3], 0.0), ([], -1.0)]
