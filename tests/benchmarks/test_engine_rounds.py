"""What is compared was asked side by side, and stays a pair whatever else was asked or failed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.engine_cases import NUM_COLD, NUM_WARM, OFF, STOCK, Bench, Plan
from benchmarks.engine_report import ratios_of, rows_of
from benchmarks.engine_rounds import Key, Rounds, Sample
from benchmarks.peers.answer import Answer, PeerError
from benchmarks.peers.ours import Setup
from benchmarks.peers.stock import Generate

PLAN = Plan((100,), (1, 8), 100, 4, 0, 1)  # streams have the same key as the long prompt


def answer(*stamps: float) -> Answer:
    return Answer(tuple(range(len(stamps))), 0.0, stamps, stamps[-1])


def rounds_of(*times: dict[str, float | None], said: list[str] | None = None) -> Rounds:
    """Each system's time to the first token and between tokens in each round; None where it failed."""
    rounds = Rounds("semcache", Generate(None), "cpu", {}, say=(said if said is not None else []).append, quiet_s=0)

    def ask(seconds: float | None) -> list[Answer]:
        if seconds is None:
            raise PeerError("it failed")
        return [answer(seconds, 2 * seconds)]

    for number, systems in enumerate(times):
        rounds.in_turn(
            number,
            {
                Key(name, "miss" if name == "semcache" else "cold", 100, 1): partial(ask, seconds)
                for name, seconds in systems.items()
            },
        )
    return rounds


def test_peers_are_compared_within_a_round() -> None:
    """The machine is slow in the first two rounds: medians of each side would pair one speed with the other."""
    rounds = rounds_of({"semcache": 0.9, "vllm": 1.8}, {"semcache": 0.8, "vllm": 2.0}, {"semcache": 0.4, "vllm": 0.5})
    ratios = ratios_of(rows_of(rounds.seen), PLAN)
    assert ratios["cold_ttft_vs_vllm"] == ratios["tpot_vs_vllm"] == pytest.approx(0.5)


def test_a_round_that_a_peer_missed_shifts_no_other() -> None:
    said: list[str] = []
    rounds = rounds_of(
        {"semcache": 0.4, "vllm": 0.8, "llama": 0.4}, {"semcache": 0.9, "vllm": None, "llama": 0.9},
        {"semcache": 0.5, "vllm": 1.0, "llama": 0.5}, said=said,
    )  # fmt: skip
    rows = rows_of(rounds.seen)
    assert {r.system: r.each_round for r in rows} == {"semcache": (0, 1, 2), "llama": (0, 1, 2), "vllm": (0, 2)}
    assert said == ["it failed"]
    ratios = ratios_of(rows, PLAN)
    assert ratios["cold_ttft_vs_vllm"] == ratios["tpot_vs_vllm"] == pytest.approx(0.5)
    assert ratios["cold_ttft_vs_llama"] == 1


def test_what_was_asked_outside_of_a_round_is_no_pair() -> None:
    """Streams that are asked one at a time have the same key where their prompts are as long."""
    rounds = rounds_of({"semcache": 0.4, "vllm": 0.8}, {"semcache": 0.5, "vllm": 1.0})
    alone = Key("semcache", "miss", 100, 1)
    rounds.seen[alone].samples[:0] = [Sample([answer(9.0, 20.0)], None)]
    rounds.record(alone, lambda: [answer(8.0, 17.0)])
    ratios = ratios_of(rows_of(rounds.seen), PLAN)
    assert ratios["cold_ttft_vs_vllm"] == ratios["tpot_vs_vllm"] == pytest.approx(0.5)

    del rounds.seen[alone].samples[1:3]
    assert "cold_ttft_vs_vllm" not in ratios_of(rows_of(rounds.seen), PLAN)  # nothing left to pair it with


class Recorder:
    """A system that remembers who was asked for what."""

    engine = SimpleNamespace(info=SimpleNamespace(vocab_size=1000))

    def __init__(self, name: str, asked: list[tuple[str, tuple[int, ...]]]) -> None:
        self.name = name
        self._asked = asked

    def ask(
        self, prompts: Any, max_tokens: int, *, sampled: bool = False, cache: bool = True, **_: Any
    ) -> list[Answer]:
        self._asked += [(self.name if cache else OFF, tuple(prompt)) for prompt in prompts]
        return [answer(*range(1, max_tokens + 1)) for _ in prompts]

    def margin(self, *_: Any) -> None:
        return None

    def spoil_slots(self, num_tokens: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def repeats() -> tuple[Bench, list[list[tuple[str, tuple[int, ...]]]]]:
    """Four repeats with two peers beside the stock model; who was asked for which prompt in each."""
    asked: list[tuple[str, tuple[int, ...]]] = []
    ours: Any = Recorder("semcache", asked)
    generate, *peers = (Recorder(name, asked) for name in ("generate", "generate_batch", "a", "b"))
    bench = Bench(
        PLAN, Setup("", "cpu", "auto", 1, 64), Path(), ours, generate, peers, num_threads=1, say=print, seed=0
    )
    each = []
    for repeat in range(4):
        bench._prompts(repeat, 100, from_disk=False)
        each.append(asked[1:])  # the first is the answer that warm requests must give
        asked.clear()
    return bench, each


def test_every_peer_is_in_every_cold_round_beside_our_arms(repeats: Any) -> None:
    bench, each = repeats
    rounds_of = {
        name: [sample.round for sample in bench.seen[Key(name, case, 100, 1)].samples]
        for name, case in {"semcache": "miss", **dict.fromkeys((OFF, "a", "b", *STOCK), "cold")}.items()
    }
    assert len(set(rounds_of["semcache"])) == len(rounds_of["semcache"]) == 4 * NUM_COLD
    assert rounds_of["semcache"] == rounds_of[OFF] == rounds_of["a"] == rounds_of["b"]
    assert rounds_of["generate"] == rounds_of["generate_batch"] == rounds_of["a"][NUM_COLD - 1 :: NUM_COLD]

    orders = set()
    for asked in each:
        cold = [(name, prompt) for name, prompt in asked if name not in STOCK][: 4 * NUM_COLD]
        for round_of in (cold[i : i + 4] for i in range(0, len(cold), 4)):
            assert len({prompt for _, prompt in round_of}) == 1
            orders.add(tuple(name for name, _ in round_of))
    assert orders == {
        ("a", OFF, "semcache", "b"), ("b", "semcache", OFF, "a"),
        ("b", OFF, "semcache", "a"), ("a", "semcache", OFF, "b"),
    }  # fmt: skip


def test_peers_that_remember_one_prompt_are_warm_for_the_one_that_is_asked_again(repeats: Any) -> None:
    for asked in repeats[1]:
        prompts = [prompt for name, prompt in asked if name == "a"]
        assert len(set(prompts[:NUM_COLD])) == NUM_COLD
        assert set(prompts[NUM_COLD - 1 : NUM_COLD + NUM_WARM]) == {prompts[NUM_COLD - 1]}
        assert prompts[NUM_COLD + NUM_WARM][:100] == prompts[NUM_COLD - 1]  # and for the longer one
