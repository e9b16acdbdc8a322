"""What is asked of every system, in which order, and which answers must be the same.

Arms take turns within a repeat, on a prompt that no system has seen, so that what drifts drifts for all of them. Only
our own system can forget what it has in RAM, so only it is measured from disk and after a restart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.engine_rounds import Ask, Key, Prompt, Rounds, Sample, rotated
from benchmarks.peers.answer import Answer, Stock, System
from benchmarks.peers.apart import Apart
from benchmarks.peers.ours import Ours, Setup
from benchmarks.peers.restart import ask_after_restart

LLAMA_CPP = "llama_cpp"  # the only peer that can forget its RAM on demand, and read a file instead
OFF = "semcache_off"  # our engine without look-up and without writes
STOCK = ("generate", "generate_batch")  # transformers on the stock model: asked less often, it takes longest
SHARED_TOKENS = 64  # the short prefix, and what follows the long one
WARM_TOKENS = 8  # answers of warm requests: enough to compare
NUM_WARM = 5  # warm requests are short, so there are more of them in a repeat
NUM_RESTARTS = 3
NUM_COLD = 3  # rounds in a repeat: what is asked once has the speed that the machine had at that moment
NUM_MOSTLY_NEW = 4  # rounds in a repeat: a ratio close to 1 needs more than one
NUM_STREAM_ROUNDS = 2
NUM_GAP_STREAMS = 4
NUM_GAP_ROUNDS = 2  # a 99th percentile of one prompt's chunks would be its slowest chunk


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
        pids = {peer.name: peer.pid for peer in (generate, *peers) if isinstance(peer, Apart)}
        self.plan = plan
        self._rounds = Rounds(ours.name, generate, setup.device, pids, say=say, quiet_s=quiet_s)
        self.seen = self._rounds.seen
        self._setup = setup
        self._home = home
        self._ours = ours
        self._generate = generate
        self._peers = peers
        self._num_threads = num_threads
        self._say = say
        self._rng = random.Random(seed)

    def run(self) -> None:
        """A first round that is not counted, then all repeats."""
        self._say("warming up")
        self._prompts(0, min(self.plan.prompt_tokens), num_cold=1, from_disk=False)
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

    def _prompts(self, repeat: int, num_tokens: int, *, num_cold: int = NUM_COLD, from_disk: bool = True) -> None:
        prompt = self._fresh(num_tokens)
        longer = [*prompt, *self._fresh(SHARED_TOKENS)]
        # The answer that warm requests must give.
        sampled = self._ours.ask([prompt], WARM_TOKENS, sampled=True, cache=False)
        turn = repeat * NUM_COLD
        for number in range(1, num_cold):
            self._cold(turn + number, self._fresh(num_tokens))
        self._cold(turn, prompt, everybody=True)  # last: llama.cpp knows the last prompt only, and is asked it again
        self._again(prompt, sampled)
        self._longer(repeat, longer)
        for number in range(NUM_MOSTLY_NEW):
            self._mostly_new(number, [*prompt[:SHARED_TOKENS], *self._fresh(num_tokens - SHARED_TOKENS)])
        if from_disk:
            self._from_disk(prompt, sampled)

    def _cold(self, turn: int, prompt: Prompt, *, everybody: bool = False) -> None:
        """A prompt that nobody has seen, for all in one round; for the stock model only where it is for `everybody`.

        A machine's speed may change within a minute, so nobody is far from what it is paired with: our two arms stand
        side by side in the middle of the peers, and the slow ones at the ends.
        """
        ours, num_answer = self._ours, self.plan.answer_tokens
        asks: dict[str, Ask] = {
            "generate": partial(self._generate.ask, [prompt], num_answer),
            OFF: partial(ours.ask, [prompt], num_answer, cache=False),
            ours.name: partial(ours.ask, [prompt], num_answer),
            **{peer.name: partial(peer.ask, [prompt], num_answer) for peer in self._peers},
        }
        names = rotated([peer.name for peer in self._peers if peer.name not in STOCK], turn // 2)
        middle = len(names) // 2
        names = [*names[:middle], OFF, ours.name, *names[middle:]]
        if everybody:
            names = ["generate", *names, *(peer.name for peer in self._peers if peer.name in STOCK)]
        keys = {name: Key(name, "miss" if name == ours.name else "cold", len(prompt), 1) for name in names}
        given = self._rounds.to_and_fro(turn, {key: asks[name] for name, key in keys.items()})
        # Where the stock model has no answer, only what our cache could have changed is compared.
        expected = given[keys["generate" if everybody else OFF]]
        for name in keys if everybody else (ours.name,):
            if name != "generate":
                self._rounds.compare(keys[name], [prompt], given[keys[name]], expected)

    def _again(self, prompt: Prompt, expected: list[Answer]) -> None:
        key = Key(self._ours.name, "warm_ram", len(prompt), 1)
        for number in range(NUM_WARM):
            ask = partial(self._ours.ask, [prompt], WARM_TOKENS, sampled=True, store=False)
            self._ours.spoil_slots(len(prompt))
            answers = self._rounds.record(key, ask)
            if number == 0:
                self.seen[key].firsts += answers
            self._rounds.compare(key, [prompt], answers, expected)
            self._ours.spoil_slots(len(prompt))
            through = ask(stored_logits=False)
            self.seen[key].through_kv += through
            self._rounds.compare(key, [prompt], through, expected)
        for peer in self._peers:
            for _ in range(NUM_WARM):
                key = Key(peer.name, "warm_ram", len(prompt), 1)
                self._rounds.record(key, partial(peer.ask, [prompt], WARM_TOKENS, sampled=True))

    def _longer(self, repeat: int, prompt: Prompt) -> None:
        """The whole earlier prompt and something behind it; against the same prompt from nothing."""
        shared = Key(self._ours.name, "shared_prefix", len(prompt), 1)
        asks: dict[Key, Ask] = {
            Key("generate", "cold", len(prompt), 1): partial(self._generate.ask, [prompt], WARM_TOKENS),
            Key(OFF, "cold", len(prompt), 1): partial(self._ours.ask, [prompt], WARM_TOKENS, cache=False),
        }
        given = self._rounds.in_turn(repeat, asks)
        for number in range(NUM_WARM):
            self._ours.spoil_slots(len(prompt))
            answers = self._rounds.record(shared, partial(self._ours.ask, [prompt], WARM_TOKENS, store=False))
            if number == 0:
                self.seen[shared].firsts += answers
            self._rounds.compare(shared, [prompt], answers, given[Key(OFF, "cold", len(prompt), 1)])
        for peer in self._peers:
            key = Key(peer.name, "shared_prefix", len(prompt), 1)
            self._rounds.record(key, partial(peer.ask, [prompt], WARM_TOKENS))

    def _mostly_new(self, number: int, prompt: Prompt) -> None:
        """A short prefix was seen: looking for more of it must not cost more than it saves; against nothing at all."""
        key, plain, stock = (Key(name, "shared_64", len(prompt), 1) for name in (self._ours.name, OFF, "generate"))
        given = self._rounds.in_turn(
            number,
            {
                key: partial(self._ours.ask, [prompt], WARM_TOKENS, store=False),
                plain: partial(self._ours.ask, [prompt], WARM_TOKENS, cache=False),
                stock: partial(self._generate.ask, [prompt], WARM_TOKENS),
            },
        )
        self._rounds.compare(key, [prompt], given[key], given[plain])
        for peer in self._peers if number == 0 else ():
            self._rounds.record(Key(peer.name, "shared_64", len(prompt), 1), partial(peer.ask, [prompt], WARM_TOKENS))

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
                answers = self._rounds.record(disk, ask)
            else:
                answers = ask()
                self.seen[disk].through_kv += answers
            self._rounds.compare(disk, [prompt], answers, expected)
        ours.close_store(drop_page_cache=False)
        try:
            for _ in range(NUM_RESTARTS):
                answer = ask_after_restart(self._setup, self._home, prompt, WARM_TOKENS, num_threads=self._num_threads)
                self.seen[restart].samples.append(Sample([answer], None))
                self._rounds.compare(restart, [prompt], [answer], expected)
        finally:
            ours.open_store()
        for peer in self._peers:
            if isinstance(peer, Apart) and peer.name == LLAMA_CPP:
                file = self._home.parent / "llama-state.bin"
                key = Key(peer.name, "restart", len(prompt), 1)
                for _ in range(NUM_RESTARTS):
                    self._rounds.record(key, partial(_after_restore, peer, prompt, file))

    # Several at once

    def _streams(self, repeat: int) -> None:
        """Prompts one at a time, then so many at once, which is stored as ever; the tokens must be the same."""
        plan, num_tokens = self.plan, self.plan.stream_prompt_tokens
        for num_streams in plan.streams:
            prompts: list[Prompt] = [self._fresh(num_tokens) for _ in range(num_streams)]
            alone = [
                answer
                for prompt in prompts
                for answer in self._rounds.record(
                    Key(self._ours.name, "miss", num_tokens, 1),
                    partial(self._ours.ask, [prompt], plan.answer_tokens, store=False),
                )
            ]
            if num_streams == 1:
                continue
            turn = repeat * NUM_STREAM_ROUNDS
            for key, answers in self._at_once(turn, prompts, everybody=True).items():
                self._rounds.compare(key, prompts, answers, alone)
            for number in range(1, NUM_STREAM_ROUNDS):
                self._at_once(turn + number, [self._fresh(num_tokens) for _ in range(num_streams)])

    def _at_once(self, turn: int, prompts: list[Prompt], *, everybody: bool = False) -> dict[Key, list[Answer]]:
        """One round; with the stock model only where it is for `everybody`."""
        num_tokens, num_streams, num_answer = len(prompts[0]), len(prompts), self.plan.answer_tokens
        ours = Key(self._ours.name, "miss", num_tokens, num_streams)
        asks: dict[Key, Ask] = {ours: partial(self._ours.ask, prompts, num_answer)}
        for peer in self._peers:
            if everybody or peer.name not in STOCK:
                key = Key(peer.name, "cold", num_tokens, num_streams)
                asks[key] = partial(peer.ask, prompts, num_answer)
        return self._rounds.in_turn(turn, asks)

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


def _after_restore(peer: Apart, prompt: Prompt, file: Path) -> list[Answer]:
    return [peer.ask_after_restore(prompt, WARM_TOKENS, file)]
