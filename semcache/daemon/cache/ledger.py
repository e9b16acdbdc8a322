"""What a scope's traffic and labels say about risk, and how far the two budgets reach. Knows no prompts.

Predicted risk (1 - chance to be right) is cut into log-spaced cells. For each cell the ledger counts requests, labels
and hits; the *limit* is the last cell that may be served. Labels come from every request that was not served and from
audits; both count alike, so risks that are not served are over-represented, which errs on the careful side.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from typing import Any

from semcache.daemon.cache.bounds import CONFIDENCE, DriftTest, certifies, most_wrong, num_clean, wilson

NUM_CELLS = 32
_SAFEST, _RISKIEST = 1e-3, 0.75
_STEP = math.log(_RISKIEST / _SAFEST) / (NUM_CELLS - 1)
_MIDDLES = tuple(_SAFEST * math.exp((cell - 0.5) * _STEP) for cell in range(NUM_CELLS))
# How many labels a cell's predicted risk is worth beside the counted ones.
_TRUST = 8.0
# Kept back for chance and for what the labels leave open, in standard deviations.
_RESERVE = 2.0
# The limit is planned for at least as many requests to come; a shorter plan would start strict and end loose, which
# serves fewer answers at the same number of wrong ones.
_PLAN = 10_000.0
_PLAN_CERTAIN = 0.5  # of what labels leave open now, they will leave about so much
_EARLY_LABELS = 100.0
# Counts fade on these scales, so that a good past cannot pay for ever.
_MEMORY_REQUESTS = 50_000.0
_MEMORY_LABELS = 500.0  # of one cell
_MEMORY_TRAFFIC = 2_000.0
# Regions that are certified end at every fourth cell. Most of the doubt is granted to the one that reaches to twice the
# hit budget, where the mean risk is likely to be within it.
_STRIDE = 4
_ENDS = tuple(range(_STRIDE - 1, NUM_CELLS, _STRIDE))
_MAIN = 0.8
ALL_AUDITED = 150
LABELS_TO_RETURN = 150


@dataclass(frozen=True)
class Budgets:
    """Most wrong answers per request and per semantic hit."""

    max_error: float
    max_hit_error: float


def cell_of(risk: float) -> int:
    """The cell of a predicted risk; NUM_CELLS for one that is never served."""
    if risk <= _SAFEST:
        return 0
    return min(NUM_CELLS, 1 + int(math.log(risk / _SAFEST) / _STEP))


def top_of(cell: int) -> float:
    """The highest risk of a cell."""
    return min(1.0, _SAFEST * math.exp(cell * _STEP))


def _zeros() -> list[float]:
    return [0.0] * NUM_CELLS


@dataclass
class Ledger:
    """The counts of one scope under one pair of budgets."""

    budgets: Budgets
    requests: float = 0.0
    recent: float = 0.0  # requests that `traffic` remembers
    traffic: list[float] = field(default_factory=_zeros)  # requests whose best candidate lies in the cell
    labels: list[float] = field(default_factory=_zeros)
    wrong: list[float] = field(default_factory=_zeros)
    unchecked: list[float] = field(default_factory=_zeros)  # hits without a label
    known_wrong: float = 0.0  # hits found wrong
    suspended: bool = False
    num_requests: int = 0
    num_served: int = 0
    num_labels: int = 0
    num_audits: int = 0
    num_wrong_audits: int = 0
    audits_to_go: int = ALL_AUDITED
    fresh_labels: int = 0  # since serving was last switched off

    def __post_init__(self) -> None:
        self._limit: tuple[int, str] | None = None
        self._alphas = _doubts(self.budgets.max_hit_error)
        self._restart_tests()

    def _restart_tests(self) -> None:
        self.hit_test = DriftTest(self.budgets.max_hit_error, every=50)
        self.request_test = DriftTest(self.budgets.max_error, every=1000)

    # What happens

    def request(self, cell: int | None = None) -> None:
        """One request that reads the scope; `cell` where its best candidate is one of this scope."""
        keep, recent = 1 - 1 / _MEMORY_REQUESTS, 1 - 1 / _MEMORY_TRAFFIC
        self.num_requests += 1
        self.requests = self.requests * keep + 1
        self.known_wrong *= keep
        self.unchecked = [hits * keep for hits in self.unchecked]
        self.recent = self.recent * recent + 1
        self.traffic = [hits * recent for hits in self.traffic]
        if cell is not None and cell < NUM_CELLS:
            self.traffic[cell] += 1
            self._limit = None

    def pass_over(self, audit_rate: float) -> None:
        """The request was not served from here, so it cannot be wrong."""
        self.request_test.step(False, self.noticed(audit_rate))

    def serve(self, cell: int, *, audit: bool, audit_rate: float) -> None:
        """The request is a hit; what an audit will find counts when it is found."""
        self.num_served += 1
        self.unchecked[cell] += 1
        if not audit:
            self.request_test.step(False, self.noticed(audit_rate))

    def noticed(self, audit_rate: float) -> float:
        """The chance that a wrong hit is noticed by an audit."""
        return 1.0 if self.audits_to_go else max(audit_rate, 1e-3)

    def label(self, cell: int, same: bool) -> None:
        """The answer of a request's best candidate was right or wrong."""
        self.num_labels += 1
        self.fresh_labels += 1
        if cell < NUM_CELLS:
            keep = 1 - 1 / _MEMORY_LABELS
            self.labels[cell] = self.labels[cell] * keep + 1
            self.wrong[cell] = self.wrong[cell] * keep + (not same)
            self._limit = None

    def audit(self, cell: int, same: bool, audit_rate: float) -> bool:
        """A hit was checked; True where this label switches serving off."""
        noticed = self.noticed(audit_rate)
        self.label(cell, same)
        self.settle(cell, same)
        self.num_audits += 1
        self.num_wrong_audits += not same
        self.audits_to_go = max(0, self.audits_to_go - 1)
        hits_drifted = self.hit_test.step(not same)
        requests_drifted = self.request_test.step(not same, noticed)
        if not (hits_drifted or requests_drifted) or self.suspended:
            return False
        self._suspend()
        return True

    def settle(self, cell: int, same: bool) -> None:
        """The outcome of one hit is known and no longer an estimate."""
        if cell < NUM_CELLS:
            self.unchecked[cell] = max(0.0, self.unchecked[cell] - 1)
        self.known_wrong += not same

    def _suspend(self) -> None:
        """Serve nothing until fresh labels show that the budgets would hold; what was spent stays spent."""
        self.known_wrong = self.expected_wrong()
        self.unchecked, self.labels, self.wrong = _zeros(), _zeros(), _zeros()
        self.suspended, self.audits_to_go, self.fresh_labels = True, ALL_AUDITED, 0
        self._restart_tests()
        self._limit = None

    # What follows

    def risk(self, cell: int) -> float:
        """The share of wrong answers in a cell: what was counted, held by what was predicted."""
        return (self.wrong[cell] + _TRUST * _MIDDLES[cell]) / (self.labels[cell] + _TRUST)

    def expected_wrong(self) -> float:
        """Wrong hits so far: those found and those to be expected among the unchecked."""
        return self.known_wrong + sum(hits * self.risk(cell) for cell, hits in enumerate(self.unchecked) if hits)

    def room(self) -> float:
        """Wrong answers that may still be served with confidence; below 0 where the budget is spent."""
        return most_wrong(self.requests, self.budgets.max_error) - self._careful(
            self.expected_wrong(), sum(self.unchecked)
        )

    def limit(self) -> tuple[int, str]:
        """The last cell that may be served, -1 for none, and why no further one may."""
        if self._limit is None:
            self._limit = self._find_limit()
            if self.suspended and self._limit[0] >= 0 and self.fresh_labels >= LABELS_TO_RETURN:
                self.suspended = False
        return (-1, "policy:suspended") if self.suspended else self._limit

    def refusal(self, cell: int) -> str | None:
        """None where a hit of this cell keeps both budgets, else the reason against it."""
        last, reason = self.limit()
        if cell > last:
            return reason
        expected = self.expected_wrong() + self.risk(cell)
        within = self._careful(expected, sum(self.unchecked) + 1) <= most_wrong(self.requests, self.budgets.max_error)
        return None if within else "policy:budget"

    def _careful(self, wrong: float, hits: float, certain: float = 1.0) -> float:
        """An upper estimate of `wrong` among unchecked hits and those found, for chance and for what labels leave open.

        Labels from before there were hits are of a scope with fewer look-alikes: they count for little here.
        """
        chance = _RESERVE * math.sqrt(wrong)
        if not hits:
            return wrong + chance
        labels = min(self.num_labels, self.num_audits + _EARLY_LABELS)
        share = min(1.0, max(0.0, wrong - self.known_wrong) / hits)
        _, high = wilson(share * labels, labels, _RESERVE) or (0.0, 1.0)
        return wrong + math.hypot(chance, certain * hits * (high - share))

    def _find_limit(self) -> tuple[int, str]:
        """The largest region within both budgets over the requests planned for."""
        certified = self._certified()
        if certified < 0 or not self.recent:
            return -1, "policy:evidence"
        ahead = max(self.requests, _PLAN)
        room = most_wrong(self.requests + ahead, self.budgets.max_error)
        wrong, hits, last = self.expected_wrong(), sum(self.unchecked), -1
        for cell in range(certified + 1):
            if more := self.traffic[cell] / self.recent * ahead:
                hits += more
                wrong += more * self.risk(cell)
                if self._careful(wrong, hits, _PLAN_CERTAIN) > room:
                    break
            last = cell
        return last, "policy:budget" if last < certified else "policy:evidence"

    def _certified(self) -> int:
        """The last cell of the largest region whose labels show that the hit budget holds."""
        budget = self.budgets.max_hit_error
        labels, wrong = list(accumulate(self.labels)), list(accumulate(self.wrong))
        for last, alpha in zip(reversed(_ENDS), reversed(self._alphas), strict=True):
            if wrong[last] < budget * labels[last] and certifies(wrong[last], labels[last], budget, alpha):
                return last
        return -1

    def num_needed(self) -> float:
        """How many labels it takes at least, all of them right, to serve anything."""
        return num_clean(self.budgets.max_hit_error, _MAIN * (1 - CONFIDENCE))

    # Across restarts

    def dump(self) -> dict[str, Any]:
        """The counts as numbers for JSON."""
        found = {name: _rounded(value) for name, value in asdict(self).items() if name != "budgets"}
        return found | {"budgets": list(asdict(self.budgets).values()),
                        "tests": [self.hit_test.dump(), self.request_test.dump()]}  # fmt: skip

    def restore(self, found: dict[str, Any]) -> None:
        """Take over what `dump` gave; ValueError or TypeError where it is damaged.

        The drift tests go on only under the budgets they were started with.
        """
        for item in fields(self):
            if item.name != "budgets":
                setattr(self, item.name, _checked(getattr(self, item.name), found[item.name]))
        if found["budgets"] == list(asdict(self.budgets).values()):
            for test, state in zip((self.hit_test, self.request_test), found["tests"], strict=True):
                test.restore(state)
        self._limit = None


def _doubts(max_hit_error: float) -> tuple[float, ...]:
    """The chance of a false certificate that is granted to each region; they sum to 5 %."""
    main = max((cell for cell in _ENDS if top_of(cell) <= 2 * max_hit_error), default=_ENDS[0])
    shares = (_MAIN if last == main else (1 - _MAIN) / (len(_ENDS) - 1) for last in _ENDS)
    return tuple((1 - CONFIDENCE) * share for share in shares)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [float(f"{item:.9g}") for item in value]
    return value


def _checked(like: Any, value: Any) -> Any:
    """The value, where it is of the same kind as what it replaces, finite and not negative."""
    if isinstance(like, list):
        if not isinstance(value, list) or len(value) != len(like):
            raise ValueError("another number of cells")
        return [_checked(0.0, item) for item in value]
    if isinstance(like, bool) != isinstance(value, bool) or not isinstance(value, (bool, int, float)):
        raise TypeError("not a number")
    if not math.isfinite(value) or value < 0:
        raise ValueError("not a count")
    return type(like)(value)
