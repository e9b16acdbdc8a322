"""What other budgets would have done with recorded decisions. Changes nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from semcache.daemon.cache.bounds import wilson
from semcache.daemon.cache.ledger import Budgets, Ledger, cell_of


class Recorded(Protocol):
    """One candidate of a past request; None is unknown."""

    @property
    def request_id(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def p_correct(self) -> float | None: ...
    @property
    def served(self) -> bool: ...
    @property
    def label(self) -> bool | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def reason(self) -> str | None: ...


@dataclass(frozen=True)
class Replayed:
    """What a pair of budgets would have served; `wrong` of the `labelled` hits, the rate and interval are theirs."""

    requests: int
    served: int
    labelled: int
    wrong: int
    rate: float | None
    ci95: tuple[float, float] | None
    words: str


def replay(
    recorded: Sequence[Recorded], *, max_error: float, max_hit_error: float, audit_rate: float = 0.05, seed: int = 0
) -> Replayed:
    """Decide again in the order of the records, with the chances as they were predicted then.

    A label is learned where these budgets would have had it: of what they do not serve, and of the hits they audit.
    Requests without a recorded candidate are not known here, so `max_error` counts those with one only.
    """
    budgets = Budgets(max_error, max_hit_error)
    ledgers: dict[str, Ledger] = {}
    draw = random.Random(seed)  # noqa: S311 - draws a sample, guards no secret
    requests = served = labelled = wrong = 0
    for _, rows in groupby(recorded, key=lambda row: row.request_id):
        candidates = list(rows)
        item = _chosen(candidates)
        requests += 1
        ledger = ledgers.setdefault((item or candidates[0]).scope, Ledger(budgets))
        if item is None or item.p_correct is None:
            ledger.request()
            ledger.pass_over(audit_rate)
            continue
        cell = cell_of(1 - item.p_correct)
        serve = ledger.refusal(cell) is None
        ledger.request(cell)
        if not serve:
            ledger.pass_over(audit_rate)
            if item.label is not None:
                ledger.label(cell, item.label)
            continue
        served += 1
        # A hit that was audited then is audited again, so that the budgets in force repeat what they did.
        audit = item.source == "audit" or ledger.audits_to_go > 0 or draw.random() < audit_rate
        audit = audit and item.label is not None
        ledger.serve(cell, audit=audit, audit_rate=audit_rate)
        if item.label is not None:
            labelled += 1
            wrong += not item.label
            if audit:
                ledger.audit(cell, item.label, audit_rate)
    rate = wrong / labelled if labelled else None
    return Replayed(requests, served, labelled, wrong, rate, wilson(wrong, labelled), _words(requests, served, rate))


def _chosen(rows: Sequence[Recorded]) -> Recorded | None:
    """The candidate that was served, else the most likely one that no one has marked wrong."""
    known = [row for row in rows if row.p_correct is not None and row.reason != "policy:marked_wrong"]
    return max(known, key=lambda row: (row.served, row.p_correct or 0.0), default=None)


def _words(requests: int, served: int, rate: float | None) -> str:
    if not requests:
        return "no recorded decisions"
    if not served:
        return "would have served nothing: too little evidence, or no room in the budgets"
    share = f"would have served {served / requests:.1%} of the recorded requests"
    return share if rate is None else f"{share}, {rate:.1%} of the labelled ones wrong"
