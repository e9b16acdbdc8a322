"""Serve a stored answer where evidence shows that both error budgets hold; everything else becomes a draft.

Judges each candidate with the evidence of its own scope. Knows no store and no model: labels are brought by `learn`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock

import numpy as np

from semcache.daemon.cache.evidence import EntryState, EvidenceBook, ScopeEvidence
from semcache.daemon.cache.features import DIFFERENCES, measure
from semcache.daemon.cache.ledger import NUM_CELLS, Budgets, cell_of
from semcache.daemon.cache.marks import pair_key
from semcache.daemon.cache.policy import Candidate, Considered, Verdict
from semcache.daemon.cache.prior import PRIOR
from semcache.daemon.cache.status import ScopeStatus, status_of
from semcache.store.decisions import Source

# Where an answer is more likely wrong than right, the wording is the reason and not the evidence.
_UNLIKELY = 0.5
# A difference is named as the reason where it costs at least this much, in log-odds.
_TELLING = 0.3


class VerifiedPolicy:
    """Two budgets, learned online. Thread-safe; deterministic given its seed and the order of calls."""

    name = "verified"

    def __init__(
        self,
        book: EvidenceBook,
        *,
        max_error: float = 0.01,
        max_hit_error: float = 0.02,
        audit_rate: float = 0.05,
        seed: int | None = None,
    ) -> None:
        self.budgets = Budgets(max_error, max_hit_error)
        self.audit_rate = audit_rate
        self._book = book
        self._random = random.Random(seed)  # noqa: S311 - draws a sample, guards no secret
        self._lock = Lock()

    def decide(
        self, prompt: str, candidates: Sequence[Candidate], scopes: Sequence[str], *, preview: bool = False
    ) -> Verdict:
        """Serve the candidate that is most likely right, if its scope's budgets allow; a preview counts nothing."""
        with self._lock:
            considered = self._consider(prompt, candidates)
            chosen = self._choose(considered)
            if chosen is not None:
                considered[chosen] = replace(considered[chosen], chosen=True)
            item = considered[chosen] if chosen is not None else None
            serve = item is not None and item.reason == "similar"
            audit = False if preview else self._count(item, serve, scopes)
        if item is None:
            first = candidates[0] if candidates else None
            return Verdict(False, "policy:marked_wrong" if first else "no_candidate", first, tuple(considered))
        return Verdict(serve, item.reason, item.candidate, tuple(considered), audit)

    def learn(
        self, prompt: str, considered: Considered, same: bool, *, source: Source, served: bool,
        regret: float | None = None,
    ) -> None:  # fmt: skip
        """Whether the candidate's answer was the model's own; `regret` in nats a token, where it has been a draft."""
        candidate = considered.candidate
        with self._lock:
            scope = self._scope(candidate.scope)
            entry = scope.entries.setdefault(candidate.entry_id, EntryState())
            entry.num_same += same
            entry.num_other += not same
            if (considered.chosen or served) and considered.features:
                # Other candidates would not have been served; they teach about worse risks only.
                scope.calibration.learn(np.array(PRIOR.standard(considered.features)), same, entry.offset)
            if regret is not None:
                entry.add_regret(regret)
            self._enter(scope, considered, same, source, served)
            if served and not same:
                self._book.add_negative(candidate.scope, pair_key(prompt, candidate.prompt))
            scope.touch(candidate.entry_id)

    def forget(self, scope: str, entry_id: str) -> None:
        """The entry is gone, and what was seen of it."""
        with self._lock:
            self._book.forget(scope, entry_id)

    def forget_scope(self, scope: str) -> None:
        """The scope was cleared; whatever the store still knows is read again."""
        with self._lock:
            self._book.forget_scope(scope)

    def flush(self, scope: str) -> bool:
        """Save what is new in the scope; False where the store could not."""
        with self._lock:
            return self._book.flush(scope)

    def scopes(self) -> list[str]:
        """Scopes in use."""
        with self._lock:
            return self._book.names()

    def status(self, scope: str) -> ScopeStatus:
        """Where the scope stands, in numbers and in one sentence."""
        with self._lock:
            return status_of(self._scope(scope).ledger)

    def suspended(self) -> list[str]:
        """Scopes in use where serving is switched off."""
        with self._lock:
            return [name for name in self._book.names() if self._scope(name).ledger.suspended]

    # How a candidate is judged

    def _consider(self, prompt: str, candidates: Sequence[Candidate]) -> list[Considered]:
        if not candidates:
            return []
        scopes = [self._scope(candidate.scope) for candidate in candidates]
        regrets = [s.regret(c.entry_id) for s, c in zip(scopes, candidates, strict=True)]
        measured = measure(prompt, [(c.prompt, c.answer, c.score) for c in candidates], regrets)
        x = np.array([PRIOR.standard(features) for features in measured])
        chances = [0.0] * len(candidates)
        for scope in {id(s): s for s in scopes}.values():
            rows = [i for i, s in enumerate(scopes) if s is scope]
            offsets = [scope.offset(candidates[i].entry_id) for i in rows]
            for i, p in zip(rows, scope.calibration.predict(x[rows], offsets), strict=True):
                chances[i] = p
        return [
            Considered(
                candidate, self._reason(prompt, candidate, scope, features, p), features, p if scope.is_known else None
            )
            for candidate, scope, features, p in zip(candidates, scopes, measured, chances, strict=True)
        ]

    def _reason(
        self, prompt: str, candidate: Candidate, scope: ScopeEvidence, features: Mapping[str, float], p: float
    ) -> str:
        if not scope.is_known:
            return "unreadable"
        if scope.negatives and pair_key(prompt, candidate.prompt) in scope.negatives:
            return "policy:marked_wrong"
        refusal = scope.ledger.refusal(cell_of(1 - p))
        if refusal is None:
            return "similar"
        return _wording(scope, features) if p < _UNLIKELY and refusal != "policy:suspended" else refusal

    @staticmethod
    def _choose(considered: Sequence[Considered]) -> int | None:
        """The most likely one that may be served, else the most likely one; None where all were marked wrong."""
        usable = [i for i, item in enumerate(considered) if item.reason != "policy:marked_wrong"]
        return max(
            usable, key=lambda i: (considered[i].reason == "similar", considered[i].p_correct or 0.0, -i), default=None
        )

    # What is counted

    def _count(self, item: Considered | None, serve: bool, scopes: Sequence[str]) -> bool:
        """Book the request in every scope it reads; True where the hit is to be audited."""
        own = item.candidate.scope if item is not None else None
        cell = cell_of(1 - (item.p_correct or 0.0)) if item is not None else NUM_CELLS
        audit = False
        for name in dict.fromkeys([*scopes, own] if own is not None else scopes):
            scope = self._scope(name)
            scope.is_dirty = True
            ledger = scope.ledger
            ledger.request(cell if name == own else None)
            if serve and name == own:
                audit = ledger.audits_to_go > 0 or self._random.random() < self.audit_rate
                ledger.serve(cell, audit=audit, audit_rate=self.audit_rate)
            else:
                ledger.pass_over(self.audit_rate)
        return audit

    def _enter(self, scope: ScopeEvidence, considered: Considered, same: bool, source: Source, served: bool) -> None:
        """Count the label for the budgets.

        A user's mark is no random sample: only what is marked wrong counts, and no audit is saved by it.
        """
        if considered.p_correct is None or not (considered.chosen or served):
            return
        cell = cell_of(1 - considered.p_correct)
        if not served:
            scope.ledger.label(cell, same)
        elif source == "audit":
            if scope.ledger.audit(cell, same, self.audit_rate):
                scope.calibration.doubt()
        elif not same:
            scope.ledger.label(cell, same)
            scope.ledger.settle(cell, same)

    def _scope(self, name: str) -> ScopeEvidence:
        return self._book.scope(name, self.budgets)


def _wording(scope: ScopeEvidence, features: Mapping[str, float]) -> str:
    """The difference that speaks most against a candidate, else that it is unlikely."""
    costs = {
        name: -float(scope.calibration.weights[PRIOR.position(name)]) / PRIOR.scales[PRIOR.position(name)]
        for name in DIFFERENCES
        if features.get(name)
    }
    worst = max(costs, key=lambda name: costs[name], default=None)
    return f"policy:{worst}" if worst is not None and costs[worst] >= _TELLING else "policy:unlikely"
