"""A request as the receipt of the wire: the one place where names and units of the contract are written."""

from __future__ import annotations

from datetime import UTC, datetime

from semcache import wire
from semcache.daemon.request import Outcome, Receipt, Request


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def cache_receipt(receipt: Receipt) -> wire.CacheReceipt:
    return {
        "outcome": receipt.outcome.value,
        "reason": receipt.reason,
        "strategy": receipt.strategy,
        "scope": receipt.scope,
        "score": None if receipt.score is None else round(receipt.score, 4),
        "entry": receipt.entry_id,
        "matched_prompt": receipt.matched_prompt,
        "entry_age_s": None if receipt.entry_age_s is None else round(receipt.entry_age_s, 1),
        "prefix_tokens": receipt.prefix_tokens,
        "draft_tokens": receipt.draft_tokens,
        "draft_accepted": receipt.draft_accepted,
        "stored": receipt.stored,
    }


def usage(request: Request) -> wire.Usage:
    num_completion = len(request.output_tokens)
    return {
        "prompt_tokens": request.num_prompt_tokens,
        "completion_tokens": num_completion,
        "total_tokens": request.num_prompt_tokens + num_completion,
        "prompt_tokens_details": {"cached_tokens": request.num_cached_tokens},
    }


def _ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round((end - start) * 1e3, 3)


def timing(request: Request) -> wire.Timing:
    """Milliseconds; `queue` is the wait for a slot, `decode` runs from the first token to the end."""
    t = request.times
    return {
        "queue": _ms(t.matched, t.prefill_started),
        "embed": None if t.embed_ms is None else round(t.embed_ms, 3),
        "lookup": None if t.lookup_ms is None else round(t.lookup_ms, 3),
        "restore": _ms(t.prefill_started, t.restored) if request.num_restored else None,
        "prefill": _ms(t.restored, t.first_token),
        "ttft": _ms(t.submitted, t.first_token),
        "second_token": _ms(t.submitted, t.second_token),
        "decode": _ms(t.first_token, t.ended) if t.prefill_started is not None else None,
        "total": _ms(t.submitted, t.ended),
    }


def ask_receipt(request: Request) -> wire.AskReceipt:
    """The whole receipt; while the request runs it says what is known so far."""
    receipt = request.receipt or Receipt(Outcome.MISS, "pending", request.options.strategy)
    return {
        "schema": wire.ASK_SCHEMA,
        "id": request.id,
        "created": iso(request.created_at),
        "model": request.model,
        "user": request.user,
        "prompt": request.last_user_message,
        "answer": request.answer,
        "finish_reason": request.finish_reason,
        "cache": cache_receipt(receipt),
        "usage": usage(request),
        "timing_ms": timing(request),
        "state": request.state.value,
        "error": request.error.message if request.error is not None else None,
    }
