"""What one `semcache replay` was asked to do, checked before anything is sent."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from semcache.errors import UsageError
from semcache.replay.gates import Gate
from semcache.replay.judge import JUDGES
from semcache.wire.protocol import STRATEGIES

MAX_USERS = 10_000
MAX_CONCURRENCY = 1024
# With --rate requests leave on time, not when a place is free; this only bounds what a stalled server can pile up.
OPEN_LOOP_CONCURRENCY = 256


@dataclass(frozen=True)
class Combination:
    """One run over the dataset; strategy None is the one that the daemon is configured with."""

    strategy: str | None
    concurrency: int

    @property
    def label(self) -> str:
        return f"{self.strategy or 'default'} x{self.concurrency}"


@dataclass(frozen=True)
class ReplayOptions:
    """The options of the command. Raises UsageError for a value or a combination that makes no sense."""

    dataset: str
    mapping: dict[str, str] = field(default_factory=dict)
    users: int | None = None  # None: the caller; N: sub-users u1 to uN
    strategies: tuple[str, ...] = ()
    concurrency: tuple[int, ...] = ()
    rate: float | None = None  # requests per second
    limit: int | None = None
    shuffle: bool = False
    seed: int | None = None
    repeat: int = 1
    cold: bool = True
    baseline: bool = False
    judge: str = "contains"
    gates: tuple[Gate, ...] = ()
    compare: str | None = None
    resume: str | None = None
    out: Path | None = None
    target: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    cost_per_hour: float | None = None

    def __post_init__(self) -> None:
        _between("--users", self.users, 1, MAX_USERS)
        _between("--limit", self.limit, 1, None)
        _between("--repeat", self.repeat, 1, None)
        _between("--max-tokens", self.max_tokens, 1, None)
        for number in self.concurrency:
            _between("--concurrency", number, 1, MAX_CONCURRENCY)
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UsageError(f"--rate {self.rate:g}: must be more than 0 requests per second", param="rate")
        if self.cost_per_hour is not None and not 0 <= self.cost_per_hour < float("inf"):
            raise UsageError(f"--cost-per-hour {self.cost_per_hour:g}: must be 0 or more", param="cost_per_hour")
        if self.seed is not None and not self.shuffle:
            raise UsageError("--seed only matters with --shuffle; add it, or leave the seed out", param="seed")
        self._check_names()
        if self.resume and self.out:
            raise UsageError("--resume continues in the folder of that run; leave --out away", param="out")
        if self.target is not None:
            self._check_target()

    def _check_names(self) -> None:
        if self.judge == "model":
            raise UsageError(f"--judge model is not available yet; use {', '.join(JUDGES)}", param="judge")
        if self.judge not in JUDGES:
            raise UsageError(f"--judge {self.judge!r}: must be one of {', '.join(JUDGES)}", param="judge")
        for name in self.strategies:
            if name not in STRATEGIES:
                raise UsageError(f"--strategy {name!r}: must be one of {', '.join(STRATEGIES)}", param="strategy")
        for option, given in (("--strategy", self.strategies), ("--concurrency", self.concurrency)):
            if len(set(given)) < len(given):
                raise UsageError(f"{option}: the same value twice; each combination runs once")

    def _check_target(self) -> None:
        assert self.target is not None
        if not self.target.startswith(("http://", "https://")):
            raise UsageError(f"--target {self.target!r}: must start with http:// or https://", param="target")
        for option, given in (("--strategy", bool(self.strategies)), ("--baseline", self.baseline)):
            if given:
                raise UsageError(f"{option} needs semcache's own API, which --target does not speak; leave it away")

    @property
    def is_cold(self) -> bool:
        """Whether an isolated namespace is used; another server has none."""
        return self.cold and self.target is None

    @property
    def combinations(self) -> list[Combination]:
        levels = self.concurrency or ((OPEN_LOOP_CONCURRENCY if self.rate else 1),)
        return [Combination(strategy, level) for level in levels for strategy in self.strategies or (None,)]

    def settings(self) -> dict[str, Any]:
        """Everything that decides what is sent and how it is judged; the same for every combination of the run."""
        return {
            "users": self.users,
            "rate": self.rate,
            "limit": self.limit,
            "shuffle": self.shuffle,
            "seed": self.order_seed,
            "repeat": self.repeat,
            "cold": self.is_cold if self.target is None else None,
            "baseline": self.baseline,
            "judge": self.judge,
            "target": self.target,
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "map": dict(self.mapping),
        }

    @property
    def order_seed(self) -> int | None:
        """The seed that decides the order of the rows; None when the file's order is kept."""
        return (self.seed or 0) if self.shuffle else None

    def recorded(self) -> dict[str, Any]:
        """Every option as given, for `run.toml`."""
        return asdict(self) | {"gates": [gate.text for gate in self.gates]}


def _between(option: str, value: int | None, low: int, high: int | None) -> None:
    if value is not None and not (low <= value and (high is None or value <= high)):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UsageError(f"{option} {value}: must be {limits}", param=option.lstrip("-").replace("-", "_"))
