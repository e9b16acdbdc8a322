"""Why an answer was or was not served, and how often that was right: explanations, audits, marks, other budgets."""

from __future__ import annotations

from typing import TypedDict

from semcache.wire.receipts import CandidateRow

EXPLAIN_SCHEMA = "semcache.explain/1"
AUDIT_SCHEMA = "semcache.audit/1"
TUNE_SCHEMA = "semcache.tune/1"


class ScopeEvidence(TypedDict):
    """What is known about semantic serving in one scope; `rate` and `ci95` of audited hits, None before the first."""

    scope: str  # user or global
    user: str | None
    state: str  # learning, serving or suspended
    requests: int
    labels: int
    served: int
    audits: int
    wrong: int
    rate: float | None
    ci95: tuple[float, float] | None
    threshold: float | None  # from where on it serves: estimated chance of being right, or cosine; None: nowhere
    words: str


class Explanation(TypedDict):
    """What would be done with a prompt now, or was done with a request, and why; nearest candidate first."""

    schema: str
    prompt: str
    user: str
    strategy: str
    policy: str
    outcome: str
    reason: str
    candidates: list[CandidateRow]
    donor: str | None  # the entry whose answer would be drafted from
    prefix_tokens: int
    max_error: float
    max_hit_error: float
    threshold: float
    evidence: list[ScopeEvidence]


class AuditRow(TypedDict):
    """One recorded decision and what it turned out to be; `same` is None until, or unless, that is known."""

    request: str
    at: str  # ISO 8601, UTC
    user: str
    entry: str
    prompt: str
    matched_prompt: str
    score: float
    p_correct: float | None
    served: bool
    same: bool | None
    source: str | None  # who said so: draft, equivalence, audit or user


class AuditReport(TypedDict):
    """`recent` is newest first; `due` hits wait for the engine to be idle."""

    schema: str
    policy: str
    equivalence: str
    audit_rate: float
    due: int
    scopes: list[ScopeEvidence]
    recent: list[AuditRow]


class Budgets(TypedDict):
    """Most wrong answers per request and per semantic hit, as shares."""

    max_error: float
    max_hit_error: float


class TuneRow(Budgets):
    """What these budgets would have served of the recorded requests; `wrong` of the `labelled` ones among them."""

    requests: int
    labelled: int
    served: int
    share: float
    wrong: int
    rate: float | None
    ci95: tuple[float, float] | None
    words: str


class TuneReport(TypedDict):
    schema: str
    current: Budgets
    rows: list[TuneRow]


class FeedbackResult(TypedDict):
    """What marking a hit did: whether the entry went, and whether the pair of prompts will never be served again."""

    request: str | None
    entry: str
    verdict: str  # wrong or right
    removed: bool
    negative_pair: bool
