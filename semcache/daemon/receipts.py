"""A request as the receipt of the wire: the one place where names and units of the contract are written."""

from __future__ import annotations

from datetime import UTC, datetime

from semcache.daemon.cache.bounds import wilson
from semcache.daemon.cache.policy import Considered
from semcache.daemon.request import Outcome, Receipt, Request
from semcache.store.decisions import Decision
from semcache.wire.receipts import ASK_SCHEMA, AskReceipt, CacheReceipt, CandidateRow, Timing, Usage
from semcache.wire.status import WrongHits


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def scope_kind(scope: str) -> str:
    """`user` or `global` of a scope's name; the rest of it is its owner."""
    return scope.split(":", 1)[0].split("#", 1)[0]


def owner_of(scope: str) -> str:
    """Whose scope it is: the user of a private one, else `global`."""
    kind, _, rest = scope.partition("#")[0].partition(":")
    return rest if kind == "user" else kind


def wrong_hits(audits: int, wrong: int) -> WrongHits:
    """What audits found, with Wilson's interval."""
    rate = round(wrong / audits, 6) if audits else None
    return {"audits": audits, "wrong": wrong, "rate": rate, "ci95": wilson(wrong, audits)}


def candidate_row(item: Considered, *, served: bool) -> CandidateRow:
    candidate = item.candidate
    return {
        "entry": candidate.entry_id,
        "scope": scope_kind(candidate.scope),
        "prompt": candidate.prompt,
        "answer": candidate.answer,
        "score": round(candidate.score, 4),
        "features": {name: round(value, 4) for name, value in item.features.items()},
        "p_correct": None if item.p_correct is None else round(item.p_correct, 4),
        "verdict": "served" if served else "refused",
        "reason": item.reason,
    }


def cache_receipt(receipt: Receipt, num_passes: int | None = None) -> CacheReceipt:
    """`num_passes` is None while the request still runs."""
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
        "passes": num_passes,
    }


def usage(request: Request) -> Usage:
    num_completion = len(request.output_tokens)
    return {
        "prompt_tokens": request.num_prompt_tokens,
        "completion_tokens": num_completion,
        "total_tokens": request.num_prompt_tokens + num_completion,
        "prompt_tokens_details": {"cached_tokens": request.num_cached_tokens},
    }


def _ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round((end - start) * 1e3, 3)


def timing(request: Request) -> Timing:
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


def audit_event(decision: Decision, same: bool | None) -> dict[str, object]:
    """What watchers hear of an audit; `same` is None where it told nothing."""
    return {"kind": "audit", "user": decision.user, "request": decision.request_id, "entry": decision.entry_id,
            "same": same}  # fmt: skip


def turn_event(user: str, request_id: str, num_tokens: int) -> dict[str, object]:
    """What watchers hear once the next turn of a conversation would restore its first `tokens`."""
    return {"kind": "turn", "user": user, "request": request_id, "tokens": num_tokens}


def ask_receipt(request: Request) -> AskReceipt:
    """The whole receipt; while the request runs it says what is known so far."""
    receipt = request.receipt or Receipt(Outcome.MISS, "pending", request.options.strategy)
    body: AskReceipt = {
        "schema": ASK_SCHEMA,
        "id": request.id,
        "created": iso(request.created_at),
        "model": request.model,
        "user": request.user,
        "prompt": request.last_user_message,
        "answer": request.answer,
        "finish_reason": request.finish_reason,
        "cache": cache_receipt(receipt, request.num_passes if request.state.is_terminal else None),
        "usage": usage(request),
        "timing_ms": timing(request),
        "state": request.state.value,
        "error": request.error.message if request.error is not None else None,
    }
    if request.explains:
        served = receipt.entry_id if receipt.outcome is Outcome.SEMANTIC else None
        body["explain"] = [candidate_row(item, served=item.candidate.entry_id == served) for item in request.considered]
    return body


def kept_receipt(request: Request) -> AskReceipt:
    """The receipt for the history: without candidates, whose text outlives neither its entry nor its user.

    Of a request that wants nothing stored it holds no text at all: an exact hit's `matched_prompt` is its own prompt.
    """
    body = ask_receipt(request)
    body.pop("explain", None)
    if request.options.no_store:
        body["prompt"] = body["answer"] = ""
        body["cache"]["matched_prompt"] = None
    return body
