"""How the daemon fares, now and since its data directory was made: status, and statistics of each user."""

from __future__ import annotations

from typing import TypedDict

STATS_SCHEMA = "semcache.stats/1"
STATUS_SCHEMA = "semcache.status/1"


class WrongHits(TypedDict):
    """Estimate of wrong answers among semantic hits; rate and interval are None before the first audit."""

    audits: int
    wrong: int
    rate: float | None
    ci95: tuple[float, float] | None


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
