"""What was learned in each scope, in memory and on disk; scopes never share it, and an entry's dies with the entry."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from semcache.daemon.cache.calibration import OFFSET_VARIANCE, Calibration, Offset
from semcache.daemon.cache.features import FEATURES
from semcache.daemon.cache.ledger import Budgets, Ledger
from semcache.daemon.cache.prior import PRIOR
from semcache.daemon.cache.strategy import is_within
from semcache.store.evidence import EntryEvidence, StoredEvidence

VERSION = 1


class EvidenceStore(Protocol):
    """Keeps evidence across restarts; a damaged one is a fresh start, None one that cannot be read now."""

    def load_evidence(self, scope: str) -> StoredEvidence | None: ...
    def save_evidence(self, scope: str, state: str, entries: Sequence[EntryEvidence]) -> bool: ...
    def add_negative(self, scope: str, pair_key: str) -> bool: ...


@dataclass
class EntryState:
    """What was seen of one entry."""

    num_same: int = 0
    num_other: int = 0
    num_regrets: int = 0
    mean_regret: float = 0.0
    offset: Offset = field(default_factory=Offset)

    def add_regret(self, regret: float) -> None:
        self.num_regrets += 1
        self.mean_regret += (regret - self.mean_regret) / self.num_regrets


@dataclass
class ScopeEvidence:
    """All that one scope has learned; nothing of that where it is not known, as the store could not be read."""

    calibration: Calibration
    ledger: Ledger
    entries: dict[str, EntryState] = field(default_factory=dict)
    negatives: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)  # entries to save
    is_dirty: bool = False
    is_known: bool = True

    def touch(self, entry_id: str) -> None:
        """The entry's evidence is to be saved."""
        self.changed.add(entry_id)
        self.is_dirty = True

    def offset(self, entry_id: str) -> Offset:
        state = self.entries.get(entry_id)
        return state.offset if state is not None else _UNSEEN

    def regret(self, entry_id: str) -> float | None:
        state = self.entries.get(entry_id)
        return state.mean_regret if state is not None and state.num_regrets else None


_UNSEEN = Offset()


class EvidenceBook:
    """The evidence of every scope; a scope is read from the store when it is first used. Not thread-safe."""

    def __init__(self, store: EvidenceStore | None = None) -> None:
        self._store = store
        self._scopes: dict[str, ScopeEvidence] = {}

    def scope(self, name: str, budgets: Budgets) -> ScopeEvidence:
        """The scope's evidence, counted under these budgets.

        What cannot be read is not kept: it would be saved over what is stored. Until it can, nothing is learned here.
        """
        found = self._scopes.get(name)
        if found is None:
            found = self._load(name, budgets)
            if found.is_known:
                self._scopes[name] = found
        return found

    def names(self) -> list[str]:
        """The scopes in use."""
        return list(self._scopes)

    def add_negative(self, scope: str, key: str) -> None:
        """The pair is never served again, from now on and after a restart."""
        if (found := self._scopes.get(scope)) is not None:
            found.negatives.add(key)
        if self._store is not None:
            self._store.add_negative(scope, key)

    def forget(self, scope: str, entry_id: str) -> None:
        """The entry is gone; what it taught the scope stays."""
        if (found := self._scopes.get(scope)) is not None:
            found.entries.pop(entry_id, None)
            found.changed.discard(entry_id)

    def forget_scope(self, scope: str) -> None:
        """The scope and its namespaces were cleared; the next use reads the store again."""
        for name in [name for name in self._scopes if is_within(name, scope)]:
            del self._scopes[name]

    def flush(self, scope: str) -> bool:
        """Save what is new; False where the store could not."""
        found = self._scopes.get(scope)
        if found is None or not found.is_dirty:
            return True
        if self._store is None:
            found.is_dirty = False
            return True
        rows = [entry_row(entry_id, found.entries[entry_id]) for entry_id in sorted(found.changed)]
        if not self._store.save_evidence(scope, dump(found), rows):
            return False
        found.changed.clear()
        found.is_dirty = False
        return True

    def _load(self, name: str, budgets: Budgets) -> ScopeEvidence:
        fresh = ScopeEvidence(fresh_calibration(), Ledger(budgets))
        if self._store is None:
            return fresh
        stored = self._store.load_evidence(name)
        if stored is None:
            fresh.is_known = False
            return fresh
        read_state(fresh, stored.state)
        fresh.negatives = set(stored.negatives)
        fresh.entries = {row.entry_id: state for row in stored.entries if (state := entry_state(row)) is not None}
        return fresh


def fresh_calibration() -> Calibration:
    """The shipped belief."""
    return Calibration(PRIOR.weights, PRIOR.variances)


def entry_row(entry_id: str, state: EntryState) -> EntryEvidence:
    return EntryEvidence(
        entry_id, state.num_same, state.num_other, state.offset.mean, 1 / state.offset.variance,
        state.num_regrets, state.mean_regret,
    )  # fmt: skip


def entry_state(row: EntryEvidence) -> EntryState | None:
    """None for a row whose numbers mean nothing."""
    numbers = (row.offset, row.precision, row.mean_regret)
    if not all(map(math.isfinite, numbers)) or row.precision < 1 / OFFSET_VARIANCE / 2:
        return None
    return EntryState(
        row.num_same, row.num_other, row.num_regrets, row.mean_regret, Offset(row.offset, 1 / row.precision)
    )


def dump(evidence: ScopeEvidence) -> str:
    """The scope's belief and counts as JSON text, numbers only."""
    return json.dumps({"version": VERSION, "features": list(FEATURES), **evidence.calibration.dump(),
                       "ledger": evidence.ledger.dump()}, separators=(",", ":"))  # fmt: skip


def read_state(evidence: ScopeEvidence, state: str | None) -> bool:
    """Take over a saved state; a damaged one, or one of other features, changes nothing and is False."""
    if state is None:
        return False
    try:
        found = json.loads(state)
        if found["version"] != VERSION or found["features"] != list(FEATURES):
            return False
        calibration = fresh_calibration()
        calibration.restore(found)
        ledger = Ledger(evidence.ledger.budgets)
        ledger.restore(found["ledger"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    evidence.calibration, evidence.ledger = calibration, ledger
    return True
