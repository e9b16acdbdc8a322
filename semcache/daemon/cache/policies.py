"""The policies by the names of `semantic.policy`."""

from __future__ import annotations

from semcache.daemon.cache.evidence import EvidenceBook
from semcache.daemon.cache.marks import MarkedPairs
from semcache.daemon.cache.policy import OffPolicy, Policy, ThresholdPolicy
from semcache.daemon.cache.verified import VerifiedPolicy


def make_policy(
    name: str, *, threshold: float, max_error: float = 0.01, max_hit_error: float = 0.02, audit_rate: float = 0.05,
    book: EvidenceBook | None = None, marks: MarkedPairs | None = None, seed: int | None = None,
) -> Policy:  # fmt: skip
    """The policy of that name, which the config has checked. Without a book or marks, nothing is kept."""
    if name == "verified":
        return VerifiedPolicy(
            book or EvidenceBook(), max_error=max_error, max_hit_error=max_hit_error, audit_rate=audit_rate, seed=seed
        )
    policies: dict[str, Policy] = {"threshold": ThresholdPolicy(threshold, marks), "off": OffPolicy()}
    return policies[name]
