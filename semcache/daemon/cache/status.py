"""Where a scope stands, in numbers and in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from semcache.daemon.cache.bounds import wilson
from semcache.daemon.cache.ledger import LABELS_TO_RETURN, Ledger, top_of


@dataclass(frozen=True)
class ScopeStatus:
    """`rate` and `ci95` are of audited hits, None before the first; `threshold` is the least chance that is served."""

    state: Literal["learning", "serving", "suspended"]
    requests: int
    labels: int
    served: int
    audits: int
    wrong: int
    rate: float | None
    ci95: tuple[float, float] | None
    budget_left: float  # wrong answers that may still be served with confidence, at least 0
    threshold: float | None
    words: str


def status_of(ledger: Ledger) -> ScopeStatus:
    """The status of the scope that the ledger counts."""
    last, reason = ledger.limit()
    state: Literal["learning", "serving", "suspended"] = "serving" if last >= 0 else "learning"
    if ledger.suspended:
        state = "suspended"
    audits, wrong = ledger.num_audits, ledger.num_wrong_audits
    threshold = 1 - top_of(last) if last >= 0 else None
    return ScopeStatus(
        state=state, requests=ledger.num_requests, labels=ledger.num_labels, served=ledger.num_served, audits=audits,
        wrong=wrong, rate=wrong / audits if audits else None, ci95=wilson(wrong, audits),
        budget_left=max(0.0, ledger.room()), threshold=threshold, words=_words(ledger, state, reason, threshold),
    )  # fmt: skip


def _words(ledger: Ledger, state: str, reason: str, threshold: float | None) -> str:
    if state == "suspended":
        missing = max(0, LABELS_TO_RETURN - ledger.fresh_labels)
        return (
            f"audits found too many wrong answers, so nothing is served; {missing} more labels at least must be good"
            if missing
            else "audits found too many wrong answers, so nothing is served until labels show that the budgets hold"
        )
    if threshold is not None:
        room = ledger.room()
        spent = "" if room >= 1 else "; the budget of wrong answers is used up for now"
        return f"serves answers that are right with a chance of {threshold:.1%} or more{spent}"
    if reason == "policy:budget":
        return (
            f"{ledger.num_requests} requests leave no room yet for a wrong answer within {ledger.budgets.max_error:.1%}"
        )
    needed = ledger.num_needed()
    return (
        f"not enough evidence: {ledger.num_labels} labels; at best {needed:.0f} of likely answers, all right, "
        f"show that fewer than {ledger.budgets.max_hit_error:.1%} of hits are wrong"
    )
