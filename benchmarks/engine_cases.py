"""What is asked of every system, in which order, and which answers must be the same.

Arms take turns within a repeat, on a prompt that no system has seen, so that what drifts drifts for all of them. Only
our own system can forget what it has in RAM, so only it is measured from disk and after a restart.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import until_quiet
from benchmarks.peers.answer import Answer, PeerError, Stock, System
from benchmarks.peers.apart import Apart
from benchmarks.peers.memory import peak_memory
from benchmarks.peers.ours import Ours, Setup
from benchmarks.peers.restart import ask_after_restart

LLAMA_CPP = "llama_cpp"  # the only peer that can forget its RAM on demand, and read a file instead
OFF = "semcache_off"  # our engine without look-up and without writes
SHARED_TOKENS = 64  # the short prefix, and what follows the long one
WARM_TOKENS = 8  # answers of warm requests: enough to compare
NUM_WARM = 5  # warm requests are short, so there are more of them in a repeat
NUM_RESTARTS = 3
NUM_MISSES = 3
NUM_MOSTLY_NEW = 4  # rounds in a repeat: a ratio close to 1 needs more than one
NUM_GAP_STREAMS = 4
NUM_GAP_ROUNDS = 2  # a 99th percentile of one prompt's chunks would be its slowest chunk

Prompt = Sequence[int]
Ask = Callable[[], list[Answer]]


class Key(NamedTuple):
    system: str
    case: str
    prompt_tokens: int
    streams: int


@dataclass(frozen=True)
class Sample:
    """One time that a system was asked; `streams` answers."""

    answers: list[Answer]
    peak_mb: float | None


@dataclass
class Seen:
    """Everything of one row."""

    samples: list[Sample] = field(default_factory=list)
    through_kv: list[Answer] = field(default_factory=list)
    firsts: list[Answer] = field(default_factory=list)  # of warm requests in a row, what a user meets
    num_compared: int = 0
    margins: list[float] = field(default_factory=list)  # of answers that differ, at the first token that does
    gaps_ms: list[float] = field(default_factory=list)
    chunk_and_step_ms: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Sizes in tokens."""

    prompt_tokens: tuple[int, ...]
    streams: tuple[int, ...]
    stream_prompt_tokens: int
    answer_tokens: int
    gap_prompt_tokens: int  # 0: not measured
    repeats: int

    @property
    def context_tokens(self) -> int:
        longest = max(*self.prompt_tokens, self.stream_prompt_tokens, self.gap_prompt_tokens)
        return longest + SHARED_TOKENS + self.answer_tokens

    @property
    def slots(self) -> int:
        return max(*self.streams, NUM_GAP_STREAMS + 1)


class Bench:
    """The systems, and what was seen of them."""

    def __init__(
        self, plan: Plan, setup: Setup, home: Path, ours: Ours, generate: Stock, peers: Sequence[System], *,
        num_threads: int, say: Callable[[str], None], seed: int, quiet_s: float = 0,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.seen: defaultdict[Key, Seen] = defaultdict(Seen)
        self._setup = setup
        self._home = home
        self._ours = ours
        self._generate = generate
        self._peers = peers
        self._num_threads = num_threads
        self._pids = {peer.name: peer.pid for peer in (generate, *peers) if isinstance(peer, Apart)}
        self._say = say
        self._quiet_s = quiet_s  # how long a request waits for a quiet moment
        self._rng = random.Random(seed)

    def run(self) -> None:
        """A first round that is not counted, then all repeats."""
        self._say("warming up")
        self._prompts(0, min(self.plan.prompt_tokens), from_disk=False)
        if self.plan.streams:
            self._streams(0)
        self.seen.clear()
        for repeat in range(self.plan.repeats):
            for num_tokens in self.plan.prompt_tokens:
                self._say(f"repeat {repeat + 1} of {self.plan.repeats}: {num_tokens} tokens")
                self._prompts(repeat, num_tokens)
            self._say(f"repeat {repeat + 1} of {self.plan.repeats}: streams")
            self._streams(repeat)
            if self.plan.gap_prompt_tokens:
                for number in range(NUM_GAP_ROUNDS):
                    self._gaps(number)

    # One prompt: cold, again, longer, mostly another, from disk, after a restart

    def _prompts(self, repeat: int, num_tokens: int, *, from_disk: bool = True) -> None:
        ours, num_answer = self._ours, self.plan.answer_tokens
        prompt = self._fresh(num_tokens)
        longer = [*prompt, *self._fresh(SHARED_TOKENS)]
        sampled = ours.ask([prompt], WARM_TOKENS, sampled=True, cache=False)  # the answer that warm requests must give
        keys = {
            name: Key(name, "miss" if name == ours.name else "cold", num_tokens, 1)
            for name in ("generate", OFF, ours.name, *(peer.name for peer in self._peers))
        }
        asks: dict[str, Ask] = {
            "generate": partial(self._generate.ask, [prompt], num_answer),
            OFF: partial(ours.ask, [prompt], num_answer, cache=False),
            ours.name: partial(ours.ask, [prompt], num_answer),
            **{peer.name: partial(peer.ask, [prompt], num_answer) for peer in self._peers},
        }
        given = self._in_turn(repeat, {keys[name]: ask for name, ask in asks.items()})
        stock = given[keys["generate"]]
        for name, key in keys.items():
            if name != "generate":
                self._compare(key, [prompt], given[key], stock)

        for number in range(NUM_MISSES - 1):
            self._miss_or_off(number, self._fresh(num_tokens))
        self._again(prompt, sampled)
        self._longer(repeat, longer)
        for number in range(NUM_MOSTLY_NEW):
            self._mostly_new(number, [*prompt[:SHARED_TOKENS], *self._fresh(num_tokens - SHARED_TOKENS)])
        if from_disk:
            self._from_disk(prompt, sampled)

    def _miss_or_off(self, number: int, prompt: Prompt) -> None:
        """What look-up and writes cost a miss: a few hundredths, so there is more than one round in a repeat."""
        ours, num_answer = self._ours, self.plan.answer_tokens
        off, miss = Key(OFF, "cold", len(prompt), 1), Key(ours.name, "miss", len(prompt), 1)
        given = self._in_turn(
            number,
            {
                off: partial(ours.ask, [prompt], num_answer, cache=False),
                miss: partial(ours.ask, [prompt], num_answer),
            },
        )
        self._compare(miss, [prompt], given[miss], given[off])

    def _again(self, prompt: Prompt, expected: list[Answer]) -> None:
        key = Key(self._ours.name, "warm_ram", len(prompt), 1)
        for number in range(NUM_WARM):
            ask = partial(self._ours.ask, [prompt], WARM_TOKENS, sampled=True, store=False)
            self._ours.spoil_slots(len(prompt))
            answers = self._record(key, ask)
            if number == 0:
                self.seen[key].firsts += answers
            self._compare(key, [prompt], answers, expected)
            self._ours.spoil_slots(len(prompt))
            through = ask(stored_logits=False)
            self.seen[key].through_kv += through
            self._compare(key, [prompt], through, expected)
        for peer in self._peers:
            for _ in range(NUM_WARM):
                key = Key(peer.name, "warm_ram", len(prompt), 1)
                self._record(key, partial(peer.ask, [prompt], WARM_TOKENS, sampled=True))

    def _longer(self, repeat: int, prompt: Prompt) -> None:
        """The whole earlier prompt and something behind it; against the same prompt from nothing."""
        shared = Key(self._ours.name, "shared_prefix", len(prompt), 1)
        asks: dict[Key, Ask] = {
            Key("generate", "cold", len(prompt), 1): partial(self._generate.ask, [prompt], WARM_TOKENS),
            Key(OFF, "cold", len(prompt), 1): partial(self._ours.ask, [prompt], WARM_TOKENS, cache=False),
        }
        given = self._in_turn(repeat, asks)
        for number in range(NUM_WARM):
            self._ours.spoil_slots(len(prompt))
            answers = self._record(shared, partial(self._ours.ask, [prompt], WARM_TOKENS, store=False))
            if number == 0:
                self.seen[shared].firsts += answers
            self._compare(shared, [prompt], answers, given[Key(OFF, "cold", len(prompt), 1)])
        for peer in self._peers:
            self._record(Key(peer.name, "shared_prefix", len(prompt), 1), partial(peer.ask, [prompt], WARM_TOKENS))

    def _mostly_new(self, number: int, prompt: Prompt) -> None:
        """A short prefix was seen: looking for more of it must not cost more than it saves; against nothing at all."""
        key, plain, stock = (Key(name, "shared_64", len(prompt), 1) for name in (self._ours.name, OFF, "generate"))
        given = self._in_turn(
            number,
            {
                key: partial(self._ours.ask, [prompt], WARM_TOKENS, store=False),
                plain: partial(self._ours.ask, [prompt], WARM_TOKENS, cache=False),
                stock: partial(self._generate.ask, [prompt], WARM_TOKENS),
            },
        )
        self._compare(key, [prompt], given[key], given[plain])
        for peer in self._peers if number == 0 else ():
            self._record(Key(peer.name, "shared_64", len(prompt), 1), partial(peer.ask, [prompt], WARM_TOKENS))

    def _from_disk(self, prompt: Prompt, expected: list[Answer]) -> None:
        """Out of files that have left the page cache; and in a new process, with the page cache as it is."""
        ours = self._ours
        disk, restart = (Key(ours.name, case, len(prompt), 1) for case in ("warm_disk", "restart"))
        for has_logits in (True, False):
            ours.close_store(drop_page_cache=True)
            ours.open_store()
            ours.spoil_slots(len(prompt))

            ask = partial(ours.ask, [prompt], WARM_TOKENS, sampled=True, store=False, stored_logits=has_logits)
            if has_logits:
                answers = self._record(disk, ask)
            else:
                answers = ask()
                self.seen[disk].through_kv += answers
            self._compare(disk, [prompt], answers, expected)
        ours.close_store(drop_page_cache=False)
        try:
            for _ in range(NUM_RESTARTS):
                answer = ask_after_restart(self._setup, self._home, prompt, WARM_TOKENS, num_threads=self._num_threads)
                self.seen[restart].samples.append(Sample([answer], None))
                self._compare(restart, [prompt], [answer], expected)
        finally:
            ours.open_store()
        for peer in self._peers:
            if isinstance(peer, Apart) and peer.name == LLAMA_CPP:
                file = self._home.parent / "llama-state.bin"
                key = Key(peer.name, "restart", len(prompt), 1)
                for _ in range(NUM_RESTARTS):
                    self._record(key, partial(_after_restore, peer, prompt, file))

    # Several at once

    def _streams(self, repeat: int) -> None:
        """Prompts one at a time, then so many at once, which is stored as ever; the tokens must be the same."""
        plan, num_tokens = self.plan, self.plan.stream_prompt_tokens
        for num_streams in plan.streams:
            prompts = [self._fresh(num_tokens) for _ in range(num_streams)]
            alone = [
                answer
                for prompt in prompts
                for answer in self._record(
                    Key(self._ours.name, "miss", num_tokens, 1),
                    partial(self._ours.ask, [prompt], plan.answer_tokens, store=False),
                )
            ]
            if num_streams == 1:
                continue
            ours = Key(self._ours.name, "miss", num_tokens, num_streams)
            asks: dict[Key, Ask] = {ours: partial(self._ours.ask, prompts, plan.answer_tokens)}
            for peer in self._peers:
                key = Key(peer.name, "cold", num_tokens, num_streams)
                asks[key] = partial(peer.ask, prompts, plan.answer_tokens)
            for key, answers in self._in_turn(repeat, asks).items():
                self._compare(key, prompts, answers, alone)

    def _gaps(self, number: int) -> None:
        """How long running streams wait for each other's next token while a long prompt is computed beside them.

        With everything looked up and stored as ever, and with the cache off; another one begins each time.
        """
        ours, plan = self._ours, self.plan
        num_tokens = plan.gap_prompt_tokens
        # A decode step follows every chunk, so streams this long run until the end of the prompt.
        num_chunks = -(-num_tokens // ours.engine.prefill_chunk_tokens)
        max_tokens = min(ours.engine.info.context_tokens - plan.stream_prompt_tokens, 2 * num_chunks)
        arms = {
            True: Key(ours.name, "miss", num_tokens, NUM_GAP_STREAMS),
            False: Key(OFF, "cold", num_tokens, NUM_GAP_STREAMS),
        }
        for cache in (True, False) if number % 2 == 0 else (False, True):
            short = [self._fresh(plan.stream_prompt_tokens) for _ in range(NUM_GAP_STREAMS)]
            long = self._fresh(num_tokens)
            seen = self.seen[arms[cache]]
            ours.settle()  # what an earlier prompt left to write belongs to neither
            seen.chunk_and_step_ms.append(ours.chunk_and_step_ms(short, long))
            seen.gaps_ms += ours.gaps_ms(short, long, max_tokens, cache=cache)

    # Helpers of the above

    def _fresh(self, num_tokens: int) -> list[int]:
        return [self._rng.randrange(self._ours.engine.info.vocab_size) for _ in range(num_tokens)]

    def _in_turn(self, repeat: int, asks: dict[Key, Ask]) -> dict[Key, list[Answer]]:
        """Ask each once; in every other repeat backwards, and then another one begins.

        Whoever comes right behind our own engine finds it and its weights warm: nobody always does.
        """
        order = list(asks)
        start = repeat // 2 % len(order)
        order = [*order[start:], *order[:start]]
        return {key: self._record(key, asks[key]) for key in (reversed(order) if repeat % 2 else order)}

    def _record(self, key: Key, ask: Ask) -> list[Answer]:
        """A peer that fails leaves a gap in the table; the others go on."""
        until_quiet(timeout_s=self._quiet_s)
        try:
            with peak_memory(self._setup.device, self._pids.get(key.system)) as peak:
                answers = ask()
        except PeerError as error:
            if key.system.startswith(self._ours.name):
                raise
            self._say(str(error))
            return []
        self.seen[key].samples.append(Sample(answers, peak.mb))
        return answers

    def _compare(self, key: Key, prompts: Sequence[Prompt], ours: list[Answer], expected: list[Answer]) -> None:
        """Count answers that differ from the expected ones, with the margin that the stock model sees between them."""
        for prompt, answer, other in zip(prompts, ours, expected, strict=bool(ours)):
            if answer.tokens and other.tokens:
                self.seen[key].num_compared += 1
                margin = self._generate.margin(prompt, answer.tokens, other.tokens)
                self.seen[key].margins += [margin] if margin is not None else []


def _after_restore(peer: Apart, prompt: Prompt, file: Path) -> list[Answer]:
    return [peer.ask_after_restore(prompt, WARM_TOKENS, file)]
