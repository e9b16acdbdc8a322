"""How sure a count of wrong answers makes us. Pure arithmetic; knows no prompts and no scopes.

The tests may be looked at after every label: each is a wager against the claim that grows past 1 / alpha with
probability at most alpha while the claim holds, whenever one stops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

Z95 = 1.959964  # two-sided 95 %
CONFIDENCE = 0.95
# Odds of the alternatives, as multiples of the budget's. Most of the stake is on "never wrong": after no wrong
# answer at all, 2 % is certified by about 160 labels.
_BELOW = ((0.0, 0.8), (0.1, 0.08), (0.25, 0.06), (0.5, 0.06))
# Wagers of the drift test: stakes on "more often wrong than the budget".
_STAKES = (0.25, 0.5, 1.0, 2.0, 5.0)
_MAX_STARTS = 8


def wilson(wrong: float, num: float, z: float = Z95) -> tuple[float, float] | None:
    """The interval of a rate of `wrong` in `num`; None where nothing was counted."""
    if num <= 0:
        return None
    rate, z2 = wrong / num, z * z
    middle = (rate + z2 / (2 * num)) / (1 + z2 / num)
    half = z / (1 + z2 / num) * math.sqrt(max(0.0, rate * (1 - rate) / num + z2 / (4 * num * num)))
    # Exact at the ends, where rounding would leave 1e-17 of room.
    return (0.0 if wrong <= 0 else max(0.0, middle - half)), (1.0 if wrong >= num else min(1.0, middle + half))


def most_wrong(num: float, budget: float, z: float = Z95) -> float:
    """How many of `num` may be wrong so that Wilson's upper bound is still within the budget; below 0: not even one."""
    return num * budget - z * math.sqrt(num * budget * (1 - budget))


def certifies(wrong: float, num: float, budget: float, alpha: float = 1 - CONFIDENCE) -> bool:
    """Whether the labels show, at any time they are looked at, that fewer than `budget` are wrong."""
    return log_evidence_below(wrong, num, budget) >= -math.log(alpha)


def num_clean(budget: float, alpha: float = 1 - CONFIDENCE) -> float:
    """How many labels, all of them right, it takes to certify a budget."""
    return math.log(alpha * _BELOW[0][1]) / math.log(1 - budget)


def log_evidence_below(wrong: float, num: float, budget: float) -> float:
    """The log of the wager that fewer than `budget` are wrong: a mixture of likelihood ratios."""
    return _log_sum([math.log(weight) + _log_ratio(wrong, num, budget, odds) for odds, weight in _BELOW])


def _log_ratio(wrong: float, num: float, budget: float, odds: float) -> float:
    rate = odds * budget / (1 - budget + odds * budget)
    right = (num - wrong) * math.log((1 - rate) / (1 - budget))
    if wrong <= 0:
        return right
    return right + wrong * math.log(rate / budget) if rate > 0 else -math.inf


def _log_sum(logs: list[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(v - top) for v in logs)) if top > -math.inf else top


@dataclass
class DriftTest:
    """Reports when the mean of wrong answers, each weighed by 1 / its chance to be noticed, exceeds the budget.

    New wagers start every `every` steps, so that a good past does not hide a bad present; the k-th start has the
    stake 1 / (k (k + 1)), which sums to 1.
    """

    budget: float
    every: int
    alpha: float = 0.01  # a false alarm takes serving away until it is earned again
    num: int = 0
    num_starts: int = 0
    _wagers: list[list[float]] = field(default_factory=list)  # [start][stake], logs
    _quiet: int = 0  # steps without a wrong answer, not yet paid
    _quiet_rate: float = 1.0

    def step(self, wrong: bool, rate: float = 1.0) -> bool:
        """One more outcome, noticed with chance `rate` if wrong; True where the budget is exceeded."""
        if rate != self._quiet_rate:
            self._pay()
            self._quiet_rate = rate
        if self.num % self.every == 0:
            self._pay()
            self._start()
        self.num += 1
        if not wrong:
            self._quiet += 1  # a wager only falls here: paid when it matters
            return False
        self._pay()
        for wager in self._wagers:
            for i, stake in enumerate(self._stakes(rate)):
                wager[i] += math.log1p(stake * (1 / rate - self.budget))
        return self.log_evidence() >= -math.log(self.alpha)

    def log_evidence(self) -> float:
        """The log of all wagers together."""
        self._pay()
        return _log_sum([value for wager in self._wagers for value in wager]) if self._wagers else 0.0

    def dump(self) -> dict[str, Any]:
        """The state as numbers for JSON."""
        self._pay()
        return {"num": self.num, "num_starts": self.num_starts, "wagers": self._wagers}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `dump` gave; ValueError or TypeError where it is damaged."""
        wagers = [[float(value) for value in wager] for wager in state["wagers"]]
        if any(len(wager) != len(_STAKES) or not all(map(math.isfinite, wager)) for wager in wagers):
            raise ValueError("not a state of this test")
        self.num, self.num_starts, self._wagers = int(state["num"]), int(state["num_starts"]), wagers
        self._quiet = 0

    def _stakes(self, rate: float) -> list[float]:
        # A stake of 1 / budget could lose everything on one right answer.
        return [min(stake * rate, 0.9 / self.budget) for stake in _STAKES]

    def _start(self) -> None:
        self.num_starts += 1
        share = 1 / (self.num_starts * (self.num_starts + 1)) / len(_STAKES)
        self._wagers.append([math.log(share)] * len(_STAKES))
        if len(self._wagers) > _MAX_STARTS:  # leaving one out only makes the test more careful
            self._wagers.remove(min(self._wagers[:-1], key=max))

    def _pay(self) -> None:
        if self._quiet:
            for wager in self._wagers:
                for i, stake in enumerate(self._stakes(self._quiet_rate)):
                    wager[i] += self._quiet * math.log1p(-stake * self.budget)
            self._quiet = 0
