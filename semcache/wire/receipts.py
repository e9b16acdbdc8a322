"""What is said of one request: what was reused, what it cost, and the stored prompts that were looked at."""

from __future__ import annotations

from typing import NotRequired, TypedDict

ASK_SCHEMA = "semcache.ask/1"


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
