"""Asks systems in rounds, and keeps what was seen of each of them.

What is asked in one round has one number, so a ratio can be taken within it wherever a system failed, and whatever else
was asked under the same key. Which prompts, and how many rounds, is not decided here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, TypeVar

from benchmarks.machine import until_quiet
from benchmarks.peers.answer import Answer, PeerError, Stock
from benchmarks.peers.memory import peak_memory

Prompt = Sequence[int]
Ask = Callable[[], list[Answer]]
T = TypeVar("T")


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
    round: int | None = None  # None: it was asked for itself, and is no pair of anything


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


class Rounds:
    """What was seen so far, and how it is added to; `ours` is what our own systems' names begin with."""

    def __init__(
        self, ours: str, stock: Stock, device: str, pids: Mapping[str, int | None], *, say: Callable[[str], None],
        quiet_s: float,
    ) -> None:  # fmt: skip
        self.seen: defaultdict[Key, Seen] = defaultdict(Seen)
        self._ours = ours
        self._stock = stock
        self._device = device
        self._pids = pids  # of systems in a process of their own
        self._say = say
        self._quiet_s = quiet_s  # how long a request waits for a quiet moment
        self._numbers = count()

    def in_turn(self, turn: int, asks: Mapping[Key, Ask]) -> dict[Key, list[Answer]]:
        """Ask each once; in every other turn backwards, and then another one begins.

        Whoever comes right behind our own engine finds it and its weights warm: nobody always does.
        """
        return self.to_and_fro(turn, dict(rotated(list(asks.items()), turn // 2)))

    def to_and_fro(self, turn: int, asks: Mapping[Key, Ask]) -> dict[Key, list[Answer]]:
        """One round: ask each once, in this order or, in every other turn, backwards."""
        number = next(self._numbers)
        return {key: self.record(key, asks[key], number) for key in (reversed(list(asks)) if turn % 2 else asks)}

    def record(self, key: Key, ask: Ask, number: int | None = None) -> list[Answer]:
        """A peer that fails leaves a gap in the table; the others go on."""
        until_quiet(timeout_s=self._quiet_s)
        try:
            with peak_memory(self._device, self._pids.get(key.system)) as peak:
                answers = ask()
        except PeerError as error:
            if key.system.startswith(self._ours):
                raise
            self._say(str(error))
            return []
        self.seen[key].samples.append(Sample(answers, peak.mb, number))
        return answers

    def compare(self, key: Key, prompts: Sequence[Prompt], ours: list[Answer], expected: list[Answer]) -> None:
        """Count answers that differ from the expected ones, with the margin that the stock model sees between them."""
        for prompt, answer, other in zip(prompts, ours, expected, strict=bool(ours and expected)):
            if answer.tokens and other.tokens:
                self.seen[key].num_compared += 1
                margin = self._stock.margin(prompt, answer.tokens, other.tokens)
                self.seen[key].margins += [margin] if margin is not None else []


def rotated(items: Sequence[T], start: int) -> list[T]:
    """All of them, beginning with another one."""
    start = start % len(items) if items else 0
    return [*items[start:], *items[:start]]
