"""What a client saw of one answer, whichever system gave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """Times are seconds of `time.perf_counter`; `stamps` has one for each token, in order."""

    tokens: tuple[int, ...]  # empty where a system gives text only
    started: float
    stamps: tuple[float, ...]
    ended: float
    settled: float | None = None  # everything that is kept of it is written
    cached_tokens: int | None = None  # of the prompt; None where a system does not say

    @property
    def ttft_ms(self) -> float | None:
        return (self.stamps[0] - self.started) * 1e3 if self.stamps else None

    @property
    def second_token_ms(self) -> float | None:
        """From the start to the second token."""
        return (self.stamps[1] - self.started) * 1e3 if len(self.stamps) > 1 else None

    @property
    def tpot_ms(self) -> float | None:
        """Mean time for each token behind the first."""
        if len(self.stamps) < 2:
            return None
        return (self.stamps[-1] - self.stamps[0]) / (len(self.stamps) - 1) * 1e3

    @property
    def total_ms(self) -> float:
        return (self.ended - self.started) * 1e3

    @property
    def settled_ms(self) -> float | None:
        return (self.settled - self.started) * 1e3 if self.settled is not None else None


class System(Protocol):
    """Something that answers prompts, greedily unless it is told to sample."""

    @property
    def name(self) -> str: ...

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, sampled: bool = False) -> list[Answer]:
        """Answers to prompts that are sent all at once, in their order; `sampled` uses other sampling parameters."""
        ...

    def close(self) -> None: ...


class Stock(System, Protocol):
    """The model that all the others are compared with."""

    def margin(self, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> float | None:
        """How far apart its logits hold the first two tokens that differ; None where none does."""
        ...


class PeerError(RuntimeError):
    """A system gave no answer; the message says why."""


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The index of the first token in which two answers differ, as far as both go."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
