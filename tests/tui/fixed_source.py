"""A daemon of fixed data: every answer is set by the test, events are pushed by hand, nothing depends on the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from semcache.errors import DaemonUnreachableError, NotFoundError, SemcacheError
from semcache.wire.receipts import ASK_SCHEMA, AskReceipt, CacheReceipt, CandidateRow
from semcache.wire.status import STATS_SCHEMA, STATUS_SCHEMA, LatencyStatus, SemanticStatus, Stats, Status, UserStats
from semcache.wire.trust import EXPLAIN_SCHEMA, Explanation, FeedbackResult, ScopeEvidence

NOW = datetime(2026, 11, 20, 11, 7, 31, tzinfo=UTC)

Part = CacheReceipt | str | AskReceipt


def receipt(
    number: int,
    outcome: str = "miss",
    *,
    prompt: str = "What is the capital of Australia?",
    user: str = "os:1000/alice",
    answer: str = "Canberra.",
    state: str | None = None,
    seconds_ago: float | None = None,
    reason: str | None = None,
    score: float | None = None,
    matched: str | None = None,
    ttft: float | None = 151.2,
    total: float | None = 402.0,
    tokens: int = 7,
    error: str | None = None,
    drafted: tuple[int, int] = (0, 0),
    prefix_tokens: int = 0,
    passes: int | None = None,
) -> AskReceipt:
    """Request `number`; smaller numbers are older unless `seconds_ago` says otherwise."""
    reasons = {"exact": "identical", "semantic": "similar"}
    created = NOW - timedelta(seconds=100 - number if seconds_ago is None else seconds_ago)
    made: AskReceipt = {
        "schema": ASK_SCHEMA,
        "id": f"req_{number:03}",
        "created": created.isoformat(),
        "model": "mini",
        "user": user,
        "prompt": prompt,
        "answer": answer,
        "finish_reason": "stop",
        "cache": {
            "outcome": outcome, "reason": reason or reasons.get(outcome, "no_candidate"), "strategy": "per_user",
            "scope": "user" if outcome != "miss" else None, "score": score, "entry": "e_01KA3" if matched else None,
            "matched_prompt": matched, "entry_age_s": 131.0 if matched else None, "prefix_tokens": prefix_tokens,
            "draft_tokens": drafted[0], "draft_accepted": drafted[1],
            "passes": 0 if outcome in ("exact", "semantic") else passes, "stored": outcome not in ("exact", "semantic"),
        },
        "usage": {
            "prompt_tokens": 81, "completion_tokens": tokens, "total_tokens": 81 + tokens,
            "prompt_tokens_details": {"cached_tokens": 81 if outcome in ("exact", "semantic") else prefix_tokens},
        },
        "timing_ms": {
            "queue": 0.2, "embed": 2.1, "lookup": 0.4, "restore": 0.9 if prefix_tokens else None,
            "prefill": round(ttft - 3.0, 1) if ttft else None, "ttft": ttft,
            "second_token": round(ttft + 2.5, 1) if ttft else None,
            "decode": round(total - ttft, 1) if total and ttft else None, "total": total,
        },
    }  # fmt: skip
    if state is not None:
        made["state"] = state
        made["error"] = error
    return made


def day_of_requests() -> list[AskReceipt]:
    """One of each outcome, a running one and a failed one; newest first, as the daemon sends them."""
    capital = "What is the capital of Australia?"
    french = "Translate to French: good night"
    return [
        receipt(8, "miss", prompt="Summarise the plot of Moby Dick", answer="A captain", user="os:1000/bob",
                state="decoding", ttft=149.0, total=None, tokens=112),
        receipt(7, "semantic", prompt="capital city of australia?", score=0.962, matched=capital, ttft=11.3,
                total=49.6),
        receipt(6, "exact", prompt=capital, matched=capital, ttft=3.1, total=9.8, tokens=9),
        receipt(5, "draft", prompt="What is the capital of Austria?", score=0.951, matched=capital, answer="Vienna.",
                reason="policy:entity", drafted=(12, 11), tokens=12, passes=3, ttft=24.0, total=61.0, prefix_tokens=64,
                user="os:1000/bob"),
        receipt(4, "prefix", prompt=f"{french}, my dear", ttft=38.4, total=280.1, tokens=12, prefix_tokens=64),
        receipt(3, "miss", prompt="What is the largest city in Australia?", score=0.914, matched=capital,
                reason="policy:threshold", user="os:1000/bob"),
        receipt(2, "miss", prompt="Explain\nquantum   tunnelling to a child 🐳", state="failed", ttft=None, total=3.0,
                tokens=0, error="EngineError: out of memory\nat step 3", answer=""),
        receipt(1, "miss", prompt=french, ttft=162.0, total=1240.5, tokens=42),
    ]  # fmt: skip


def latency(n: int, ttft_p50: float, ttft_p95: float, total_p50: float) -> LatencyStatus:
    return {"n": n, "ttft_p50": ttft_p50, "ttft_p95": ttft_p95, "total_p50": total_p50, "total_p95": total_p50 * 2}


def semantic(**changes: Any) -> SemanticStatus:
    made: SemanticStatus = {
        "policy": "verified", "threshold": 0.95, "max_error": 0.01, "max_hit_error": 0.02, "audit_rate": 0.05,
        "equivalence": "text", "embedder": "minilm", "state": "ready", "reason": None, "audits": 38, "wrong": 0,
        "rate": 0.0, "ci95": (0.0, 0.092), "due_audits": 3, "suspended": [], "drafts": True,
    }  # fmt: skip
    return cast("SemanticStatus", {**made, **changes})


def candidate(score: float, prompt: str, **changes: Any) -> CandidateRow:
    made: CandidateRow = {
        "entry": "e_01KA3", "scope": "user", "prompt": prompt, "answer": "Canberra.", "score": score,
        "features": {"number": 0.0, "entity": 0.0}, "p_correct": None, "verdict": "refused",
        "reason": "policy:threshold",
    }  # fmt: skip
    return cast("CandidateRow", {**made, **changes})


def scope_evidence(**changes: Any) -> ScopeEvidence:
    made: ScopeEvidence = {
        "scope": "user", "user": "os:1000/bob", "state": "learning", "requests": 310, "labels": 41, "served": 22,
        "audits": 22, "wrong": 0, "rate": 0.0, "ci95": (0.0, 0.149), "threshold": None,
        "words": "128 more clean audits until it may serve within 2 %",
    }  # fmt: skip
    return cast("ScopeEvidence", {**made, **changes})


def explanation(*candidates: CandidateRow, **changes: Any) -> Explanation:
    made: Explanation = {
        "schema": EXPLAIN_SCHEMA, "prompt": "What is the capital of Austria?", "user": "os:1000/bob",
        "strategy": "per_user", "policy": "verified", "outcome": "draft", "reason": "policy:entity",
        "candidates": list(candidates), "donor": "e_01KA3", "prefix_tokens": 64, "max_error": 0.01,
        "max_hit_error": 0.02, "threshold": 0.95, "evidence": [scope_evidence()],
    }  # fmt: skip
    return cast("Explanation", {**made, **changes})


def status(**changes: Any) -> Status:
    made: Status = {
        "schema": STATUS_SCHEMA, "version": "0.1.0", "protocol": 1, "pid": 8123, "state": "ready",
        "uptime_s": 11_534.0, "autostarted": False, "socket": "/run/user/1000/semcache/api.sock", "url": None,
        "data_dir": "/home/alice/.local/share/semcache",
        "model": {
            "name": "mini", "state": "ready", "stage": None, "progress": None, "error": None,
            "architecture": "LlamaForCausalLM", "parameters": 3_400_000, "device": "cpu", "dtype": "fp32",
            "context_tokens": 8192, "slots": 8, "fingerprint": "f", "weights_bytes": 13_600_000,
            "kv_bytes_per_token": 2048, "unloads_in_s": 581.0,
        },
        "queue": {"running": 1, "waiting": 0}, "entries": 1284, "blocks": 20_480,
        "tiers": {
            "ram": {"used_bytes": 1_900_000_000, "limit_bytes": 4_000_000_000, "items": 900},
            "disk": {"used_bytes": 12_100_000_000, "limit_bytes": 20_000_000_000, "items": 1284},
        },
        "outcomes": {"exact": 412, "semantic": 121, "draft": 90, "prefix": 187, "miss": 190},
        "latency": {
            "exact": latency(412, 3.1, 8.4, 9.8), "semantic": latency(121, 11.3, 19.0, 49.6),
            "draft": latency(90, 24.0, 41.2, 61.0), "prefix": latency(187, 38.4, 77.0, 280.1),
            "miss": latency(190, 151.2, 402.9, 1240.5), "all": latency(1000, 14.0, 310.0, 210.0),
        },
        "semantic": semantic(),
        "counters": {"evictions": 12, "damaged_blocks": 0}, "warnings": [],
    }  # fmt: skip
    return cast("Status", {**made, **changes})


def user_stats(user: str, requests: int, hits: tuple[int, int], **changes: Any) -> UserStats:
    answer_hits, compute_hits = hits
    made: UserStats = {
        "user": user, "requests": requests, "errors": 1, "outcomes": {}, "answer_hits": answer_hits,
        "compute_hits": compute_hits, "answer_share": answer_hits / requests if requests else 0.0,
        "compute_share": compute_hits / requests if requests else 0.0, "prompt_tokens": 109_870,
        "cached_tokens": 68_120, "completion_tokens": 9_100, "drafted_tokens": 1080, "accepted_tokens": 1012,
        "saved_ms": 41_200.0, "stored_bytes": {"ram": 19_000_000, "disk": 121_000_000}, "quota_bytes": None,
        "wrong_hits": {"audits": 0, "wrong": 0, "rate": None, "ci95": None},
    }  # fmt: skip
    return cast("UserStats", {**made, **changes})


def stats(**changes: Any) -> Stats:
    users = [
        user_stats("os:1000/bob", 310, (90, 201), saved_ms=9_100.0, cached_tokens=12_345, quota_bytes=2_000_000_000),
        user_stats("os:1000/alice", 690, (443, 609)),
    ]
    made: Stats = {
        "schema": STATS_SCHEMA,
        "total": user_stats("", 1000, (533, 810), **changes),
        "users": users,
    }
    return made


class FixedSource:
    """Stands for `semcache.client.Client`. While `error` is set, everything raises it."""

    def __init__(self, requests: list[AskReceipt] | None = None) -> None:
        self.status_now = status()
        self.stats_now = stats()
        self.requests_now = day_of_requests() if requests is None else requests
        self.error: SemcacheError | None = None
        self.num_polls = 0
        self.asked: list[Mapping[str, Any]] = []
        self.parts: asyncio.Queue[Part | SemcacheError | None] = asyncio.Queue()
        self.num_streams_closed = 0
        self.explanations = {
            "req_005": explanation(
                candidate(0.951, "What is the capital of Australia?", p_correct=0.412, reason="policy:entity",
                          features={"number": 0.0, "entity": 1.0}),
                candidate(0.874, "What is the largest city in Australia?", p_correct=0.081, reason="policy:unlikely"),
            )
        }  # fmt: skip
        self.marked: list[tuple[str, str]] = []
        self.marking: FeedbackResult | SemcacheError = {
            "request": "req_007",
            "entry": "e_01KA3",
            "verdict": "wrong",
            "removed": True,
            "negative_pair": True,
        }
        self._events: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()

    def go_away(self) -> None:
        self.error = DaemonUnreachableError("no daemon answers at unix:/run/user/1000/semcache/api.sock")
        self._events.put_nowait(None)

    def push(self, receipt: AskReceipt) -> None:
        self._events.put_nowait(("request", dict(receipt)))

    def push_model(self, **changes: Any) -> None:
        self._events.put_nowait(("model", {**self.status_now["model"], **changes}))

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    async def status(self) -> Status:
        self.num_polls += 1
        self._check()
        return self.status_now

    async def stats(self) -> Stats:
        self._check()
        return self.stats_now

    async def requests(self, limit: int = 50) -> list[AskReceipt]:
        self._check()
        return self.requests_now[:limit]

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        self._check()
        while (event := await self._events.get()) is not None:
            yield event

    async def ask_stream(
        self, body: Mapping[str, Any], *, cache_control: str | None = None
    ) -> AsyncIterator[CacheReceipt | str | AskReceipt]:
        """Yields what the test puts into `parts`, until None."""
        self._check()
        self.asked.append(body)
        try:
            while (part := await self.parts.get()) is not None:
                if isinstance(part, SemcacheError):
                    raise part
                yield part
        finally:
            self.num_streams_closed += 1

    async def explained(self, request_id: str) -> Explanation:
        self._check()
        if request_id not in self.explanations:
            raise NotFoundError(f"no request {request_id!r} is remembered")
        return self.explanations[request_id]

    async def feedback(self, marked_id: str, verdict: str) -> FeedbackResult:
        self._check()
        self.marked.append((marked_id, verdict))
        if isinstance(self.marking, SemcacheError):
            raise self.marking
        return self.marking
