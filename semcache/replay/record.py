"""One request of a replay as it is kept: a line of `requests.jsonl`, a row of `requests.csv`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from semcache.replay.options import Combination

RUN = "run"
BASELINE = "baseline"


@dataclass(frozen=True)
class Reply:
    """What came back for one request; times are the client's own. Unknown is None."""

    answer: str
    outcome: str
    ttft_ms: float | None  # send to first text; None when there was no text
    total_ms: float
    request_id: str | None = None
    finish_reason: str | None = None
    strategy: str | None = None  # the one that the daemon applied
    cache: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    timing_ms: dict[str, Any] | None = None  # the daemon's own times


@dataclass(frozen=True)
class RequestRecord:
    """A finished or failed request. `(phase, strategy, concurrency, index)` is its identity within a run directory."""

    phase: str  # run or baseline
    strategy: str | None
    concurrency: int
    index: int
    round: int
    row: int
    prompt: int  # the first row that asks the same; equal prompts have equal numbers
    user: str | None
    group: str | None
    question: str
    expected: list[str]
    started_s: float  # since the run began
    late_ms: float | None  # after its due time; only with --rate
    attempts: int
    reply: Reply | None
    error: dict[str, str] | None
    correct: bool | None = None
    wrong: bool | None = None  # only for a semantic answer that could be checked
    reference: str | None = None  # what `wrong` was judged by: baseline or expected

    @property
    def key(self) -> tuple[str, str | None, int, int]:
        return self.phase, self.strategy, self.concurrency, self.index

    @property
    def ended_s(self) -> float:
        return self.started_s + (self.reply.total_ms / 1000 if self.reply else 0.0)

    def is_of(self, phase: str, combination: Combination) -> bool:
        return (self.phase, self.strategy, self.concurrency) == (
            phase,
            combination.strategy,
            combination.concurrency,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> RequestRecord:
        value = json.loads(line)
        reply = value.pop("reply")
        return RequestRecord(**value, reply=Reply(**reply) if reply else None)

    def to_row(self) -> dict[str, Any]:
        """The flat columns of `requests.csv`, the same for every record."""
        reply, cache, usage = self.reply, self._part("cache"), self._part("usage")
        return {
            "phase": self.phase,
            "strategy": self.strategy,
            "concurrency": self.concurrency,
            "index": self.index,
            "round": self.round,
            "row": self.row,
            "prompt": self.prompt,
            "user": self.user,
            "group": self.group,
            "outcome": reply.outcome if reply else None,
            "reason": cache.get("reason"),
            "score": cache.get("score"),
            "entry": cache.get("entry"),
            "started_s": self.started_s,
            "late_ms": self.late_ms,
            "attempts": self.attempts,
            "ttft_ms": reply.ttft_ms if reply else None,
            "total_ms": reply.total_ms if reply else None,
            "prompt_tokens": usage.get("prompt_tokens"),
            "cached_tokens": cached_tokens(usage),
            "completion_tokens": usage.get("completion_tokens"),
            "draft_tokens": cache.get("draft_tokens"),
            "draft_accepted": cache.get("draft_accepted"),
            "correct": self.correct,
            "wrong": self.wrong,
            "reference": self.reference,
            "finish_reason": reply.finish_reason if reply else None,
            "error": self.error["code"] if self.error else None,
            "question": self.question,
            "expected": " | ".join(self.expected),
            "answer": reply.answer if reply else None,
            "matched_prompt": cache.get("matched_prompt"),
        }

    def _part(self, name: str) -> dict[str, Any]:
        return (getattr(self.reply, name) or {}) if self.reply else {}


def cached_tokens(usage: dict[str, Any]) -> int | None:
    """Prompt tokens that were not computed, where the server says so."""
    details = usage.get("prompt_tokens_details")
    return details.get("cached_tokens") if isinstance(details, dict) else None
