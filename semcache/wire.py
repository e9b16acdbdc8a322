"""What crosses HTTP, typed once for daemon, CLI, TUI and replay. Plain dictionaries: cheap to import.

The daemon validates what it receives in `daemon/bodies.py`; this file only says what the shapes are.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

PROTOCOL = 1
ASK_SCHEMA = "semcache.ask/1"
STATS_SCHEMA = "semcache.stats/1"
STATUS_SCHEMA = "semcache.status/1"
REPLAY_SCHEMA = "semcache.replay/1"
EXPLAIN_SCHEMA = "semcache.explain/1"
AUDIT_SCHEMA = "semcache.audit/1"
TUNE_SCHEMA = "semcache.tune/1"

OUTCOMES = ("exact", "semantic", "draft", "prefix", "miss")
# The fuller the disc, the higher the rung; shown beside the word, never alone.
OUTCOME_GLYPHS = {"exact": "●", "semantic": "◕", "draft": "◑", "prefix": "◔", "miss": "○"}
STRATEGIES = ("per_user", "global_user", "global_only", "no_cache")
CACHE_MODES = ("auto", "lossless", "exact", "prefix", "off")


class CacheReceipt(TypedDict):
    """The `cache` object of a receipt. `scope` is `user` or `global`; unknown is None."""

    outcome: str
    reason: str
    strategy: str
    scope: str | None
    score: float | None
    entry: str | None
    matched_prompt: str | None
    entry_age_s: float | None
    prefix_tokens: int
    draft_tokens: int
    draft_accepted: int
    passes: int | None  # forward passes the request took part in; 0 for a replayed answer
    stored: bool


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timing(TypedDict):
    """Milliseconds; None where the request never came there."""

    queue: float | None
    embed: float | None
    lookup: float | None
    restore: float | None
    prefill: float | None
    ttft: float | None
    second_token: float | None
    decode: float | None
    total: float | None


class CandidateRow(TypedDict):
    """One stored prompt that was looked at. `score` is a cosine; `p_correct` None: the policy estimates none."""

    entry: str
    scope: str  # user or global
    prompt: str
    answer: str
    score: float
    features: dict[str, float]
    p_correct: float | None
    verdict: str  # served or refused
    reason: str


class AskReceipt(TypedDict):
    """`ask --json`, the `semcache` object of HTTP bodies, and a row of /v1/semcache/requests."""

    schema: str
    id: str
    created: str  # ISO 8601, UTC
    model: str
    user: str
    prompt: str
    answer: str
    finish_reason: str | None
    cache: CacheReceipt
    usage: Usage
    timing_ms: Timing
    explain: NotRequired[list[CandidateRow]]  # only where the request asked for it; nearest first
    state: NotRequired[str]  # only in /v1/semcache/requests: queued, matching, …, finished, failed, cancelled
    error: NotRequired[str | None]


class UserStats(TypedDict):
    """One row of `stats`: counts since the data directory was made."""

    user: str
    requests: int
    errors: int
    outcomes: dict[str, int]
    answer_hits: int
    compute_hits: int
    answer_share: float
    compute_share: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    saved_ms: float
    stored_bytes: dict[str, int]  # by tier: ram, disk
    quota_bytes: int | None
    wrong_hits: WrongHits


class WrongHits(TypedDict):
    """Estimate of wrong answers among semantic hits; rate and interval are None before the first audit."""

    audits: int
    wrong: int
    rate: float | None
    ci95: tuple[float, float] | None


class Stats(TypedDict):
    schema: str
    total: UserStats
    users: list[UserStats]


class ModelStatus(TypedDict):
    """`state` is unloaded, loading, ready or failed."""

    name: str
    state: str
    stage: str | None
    progress: float | None
    error: str | None
    architecture: str | None
    parameters: int | None
    device: str | None
    dtype: str | None
    context_tokens: int | None
    slots: int | None
    fingerprint: str | None
    weights_bytes: int | None
    kv_bytes_per_token: int | None
    unloads_in_s: float | None


class TierStatus(TypedDict):
    used_bytes: int
    limit_bytes: int
    items: int


class LatencyStatus(TypedDict):
    """Over the newest requests of this process (at most 1,024); milliseconds."""

    n: int
    ttft_p50: float | None
    ttft_p95: float | None
    total_p50: float | None
    total_p95: float | None


class SemanticStatus(WrongHits):
    """The policy, its budgets as shares, and what audits found in all scopes together."""

    policy: str
    threshold: float
    max_error: float
    max_hit_error: float
    audit_rate: float
    equivalence: str
    embedder: str
    state: str  # of the embedder: off, loading, ready, failed
    reason: str | None
    due_audits: int
    suspended: list[str]  # where serving is switched off: user ids, and `global`
    drafts: bool


class Status(TypedDict):
    """/v1/semcache/status. Looking never wakes the model nor resets a timer."""

    schema: str
    version: str
    protocol: int
    pid: int
    state: str  # starting, loading, ready, draining
    uptime_s: float
    autostarted: bool
    socket: str
    url: str | None
    data_dir: str
    model: ModelStatus
    queue: dict[str, int]  # running, waiting
    entries: int
    blocks: int
    tiers: dict[str, TierStatus]  # ram, disk
    outcomes: dict[str, int]  # this process
    latency: dict[str, LatencyStatus]  # by outcome and "all"
    semantic: SemanticStatus
    counters: dict[str, int]  # damaged_blocks, damaged_entries, evictions, …
    warnings: list[str]


class EntrySummary(TypedDict):
    """One row of `cache ls`."""

    id: str
    user: str
    scope: str
    model: str
    prompt: str
    answer: str
    created: str
    last_used: str
    hits: int
    prompt_tokens: int
    completion_tokens: int
    size_bytes: int
    pinned: bool


class FoundEntry(EntrySummary):
    """One row of `cache find`; `score` is the cosine to the text that was looked for."""

    score: float


class EntryEvidence(TypedDict):
    """How often another wording was found to want this entry's answer (`same`) or another one (`other`).

    `mean_regret` is in nats a token: how much less likely than its own words the model found the answer elsewhere.
    """

    same: int
    other: int
    mean_regret: float | None


class EntryDetail(EntrySummary):
    messages: list[dict[str, str]]
    sampling: dict[str, Any]
    finish_reason: str
    strategy: str
    fingerprint: str
    blocks: int | None  # that hold its prompt's KV on disk now; None where that was never noted
    kv_bytes: int | None  # of those
    embedded: bool
    expires: str | None
    aliases: list[str]  # prompts that were verified to want the same answer
    evidence: EntryEvidence | None


class PinResult(TypedDict):
    """What a pin holds now, or held: an answer and `blocks` of its prompt's KV, `bytes` together."""

    id: str
    pinned: bool
    blocks: int
    bytes: int


class Cleared(TypedDict):
    """What `clear` removed, and how many pinned answers it left."""

    entries: int
    blocks: int
    pinned: int


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


class CheckReport(TypedDict):
    """`cache check`: rows and files compared. `ok` is false when anything was found that `fix` did not repair."""

    ok: bool
    fixed: bool
    entries: int
    blocks: int
    bytes: int
    problems: list[dict[str, str]]  # kind, path or id, detail


class ErrorBody(TypedDict):
    """OpenAI's error object, inside {"error": …}."""

    message: str
    type: str
    param: str | None
    code: str | None


EventKind = Literal["request", "model", "cache"]
