"""Stored answers: as they are listed and found, and what became of pinning, clearing and checking them."""

from __future__ import annotations

from typing import Any, TypedDict


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


class CheckReport(TypedDict):
    """`cache check`: rows and files compared. `ok` is false when anything was found that `fix` did not repair."""

    ok: bool
    fixed: bool
    entries: int
    blocks: int
    bytes: int
    problems: list[dict[str, str]]  # kind, path or id, detail
