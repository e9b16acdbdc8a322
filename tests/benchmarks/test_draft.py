"""The draft benchmark on a tiny shape: the figures that do not depend on the clock, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from benchmarks import draft
from benchmarks.draft import Bench, Row, clearness, measure
from benchmarks.shapes import LOGIT_SPREAD, SHAPES, load_shape
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.sampler import SampleKey
from semcache.daemon.request import Sampling


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def bench() -> Iterator[Bench]:
    engine = Engine(load_shape("tiny", context_tokens=256), num_slots=1, prefill_chunk_tokens=128)
    bench = Bench(engine, prompt_tokens=40, answer_tokens=60)
    yield bench
    bench.close()


def test_passes_follow_the_number_of_wrong_tokens(bench: Bench) -> None:
    rows = {row.k: row for row in measure(bench, Sampling(), repeats=2)}
    assert list(rows) == [0, 2, 10, 60]
    assert {row.passes_plain for row in rows.values()} == {60}
    assert rows[0].passes == 2
    assert rows[2].passes <= 60 / 4
    assert rows[2].passes <= rows[10].passes < 60
    assert rows[60].passes == 60
    assert all(row.divergences == 0 and row.max_divergence_margin is None for row in rows.values())


def test_replaced_tokens_are_other_ones(bench: Bench) -> None:
    answer = list(range(60))
    for k in (0, 2, 60):
        pairs = zip(answer, bench.replaced(answer, k), strict=True)
        assert sum(ours != theirs for ours, theirs in pairs) == k


def test_a_divergence_is_found_with_its_margin(bench: Bench) -> None:
    answer = bench.answer(Sampling()).output_tokens
    assert bench.margin(answer, answer, Sampling()) is None
    other = [*answer[:7], answer[7] + 1, *answer[8:]]
    margin = bench.margin(other, answer, Sampling())
    prefix = bench.run([*bench.prompt, *answer[:7]], Sampling(max_tokens=1))
    assert isinstance(prefix.prompt_logits, torch.Tensor)
    top = prefix.prompt_logits.topk(2).values
    assert margin == pytest.approx(float(top[0] - top[1]), rel=0.01)


def test_clearness_of_sampled_choices_is_in_logits() -> None:
    logits = torch.tensor([9.0, -50.0, -50.0])
    greedy = clearness(logits, SampleKey(Sampling(), 0, 0))
    assert greedy == pytest.approx(59.0, rel=0.01)
    assert clearness(logits, SampleKey(Sampling(temperature=0.8), 0, 0)) == pytest.approx(greedy, rel=0.2)


def test_random_weights_spread_their_logits_and_never_end(bench: Bench) -> None:
    request = bench.answer(Sampling())
    assert isinstance(request.prompt_logits, torch.Tensor)
    assert float(request.prompt_logits.std()) == pytest.approx(LOGIT_SPREAD, rel=0.3)
    assert len(request.output_tokens) == 60
    assert len(set(request.output_tokens)) > 10  # and they do not say one token for ever


def test_the_command_writes_the_rows_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "draft.json"
    arguments = ["--shape", "tiny", "--prompt-tokens", "20", "--answer-tokens", "12", "--repeats", "1"]
    assert draft.main([*arguments, "--json", str(out), "--plots", str(tmp_path / "plots")]) == 0
    body = json.loads(out.read_text())
    assert body["schema"] == "semcache.bench.draft/1"
    assert body["shape"] == "tiny"
    assert body["machine"]["torch"] == torch.__version__
    assert [row["k"] for row in body["rows"]] == [0, 2, 10, 12]
    assert set(body["rows"][0]) == {field.name for field in fields(Row)}
    assert body["sampled"]["answers"] == 2
    assert (tmp_path / "plots" / "draft.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "total/prefill" in printed
    assert "T = 0.8, seeded: 2 of 2" in printed


def test_a_shape_that_is_none_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert draft.main(["--shape", "/no/such/folder"]) == 2
    assert "/no/such/folder" in capsys.readouterr().err


def test_shapes_are_those_of_their_names() -> None:
    millions = {"135m": (130, 140), "1b": (1200, 1300), "7b": (7000, 7400)}
    for name, (low, high) in millions.items():
        shape = SHAPES[name]
        head_dim = shape.hidden_size // shape.num_heads
        attention = shape.hidden_size * head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
        layers = shape.num_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)
        embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.has_tied_embeddings else 2)
        assert low * 10**6 < layers + embeddings < high * 10**6, name
