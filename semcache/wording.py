"""How decisions of the cache are said: reasons as sentences, differing wordings, what was measured. For CLI and TUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semcache.wire.receipts import CacheReceipt, CandidateRow
from semcache.wire.status import WrongHits
from semcache.wire.trust import FeedbackResult

REASONS = {
    "identical": "the identical request was answered before",
    "in_flight": "the identical request was being computed; this one waited for its answer",
    "alias": "this wording was verified before to want the same answer",
    "similar": "a differently worded prompt is trusted to mean the same",
    "pending": "the look-up is not done yet",
    "empty": "nothing is stored in this scope yet",
    "no_candidate": "no stored prompt is near this one",
    "scope": "the nearest prompt belongs to a scope that this user may not read",
    "disabled": "the request or the configuration switched this kind of reuse off",
    "expired": "the stored entry is older than the time to live",
    "unreadable": "the stored data could not be read, so it was computed again",
    "params": "sampling parameters forbid replaying a stored answer",
    "too_long": "the message is longer than the embedder's window",
    "policy:threshold": "the nearest prompt is not similar enough",
    "policy:number": "the prompts name different numbers",
    "policy:negation": "one prompt negates what the other one asks",
    "policy:entity": "the prompts name different things",
    "policy:scale": "the prompts ask for opposite ends of a scale",
    "policy:order": "the same words stand in another order",
    "policy:question": "the prompts begin with different question words",
    "policy:evidence": "too little is known yet to trust another wording",
    "policy:budget": "serving it would risk more wrong answers than the budgets allow",
    "policy:suspended": "audits found too many wrong answers in this scope, so nothing is served there for now",
    "policy:marked_wrong": "this pair of prompts was found to want different answers",
    "policy:unlikely": "the stored answer is not likely enough to be right here",
}

# Features of a candidate that say in what the two wordings differ, and the word for it.
DIFFERENCES = {
    "number": "numbers", "negation": "negation", "entity": "names", "scale": "ends of a scale", "order": "word order",
    "question": "question words",
}  # fmt: skip

NOT_AUDITED = "not audited yet"


def reason_words(reason: str) -> str:
    """The reason as a sentence; an unknown code is shown as it is."""
    if reason in REASONS:
        return REASONS[reason]
    return f"refused by the policy: {reason.removeprefix('policy:')}" if reason.startswith("policy:") else reason


def verdict_words(candidate: CandidateRow) -> str:
    """Why a candidate was served or not."""
    if candidate["verdict"] != "served" and candidate["reason"] == "similar":
        return "trusted too, but not needed"
    return reason_words(candidate["reason"])


def differing(features: Mapping[str, float]) -> list[str]:
    """In what two wordings differ, in words; empty when no telling difference is seen."""
    return [word for name, word in DIFFERENCES.items() if features.get(name, 0.0) > 0]


def is_other_wording(cache: CacheReceipt) -> bool:
    """Whether the answer was stored for another wording, so that it can be a wrong one."""
    return cache["outcome"] == "semantic" or cache["reason"] == "alias"


def marked_words(done: FeedbackResult) -> str:
    """What marking a hit or an entry did."""
    if done["removed"]:
        return f"{done['entry']} is removed"
    if done["negative_pair"]:
        return f"{done['entry']} is never served for that wording again"
    return f"noted, but {done['entry']} may be served again" if done["verdict"] == "wrong" else "noted"


def suspended_words(scopes: Sequence[str]) -> str:
    """Where answers of other wordings are not served for now, and what still is."""
    return f"semantic off for {', '.join(scopes)}: audits found too many wrong answers; exact, draft and prefix go on"


def estimate(wrong: WrongHits) -> str:
    """`1/38 audited (0.1–13 %)`; nothing is claimed before the first audit."""
    return f"{wrong['wrong']}/{wrong['audits']} audited{_interval(wrong)}" if wrong["audits"] else NOT_AUDITED


def short_estimate(wrong: WrongHits) -> str:
    """The same where there is little room."""
    return f"{wrong['wrong']}/{wrong['audits']}{_interval(wrong)}" if wrong["audits"] else "not audited"


def _interval(wrong: WrongHits) -> str:
    return f" ({interval(wrong['ci95'])})" if wrong["ci95"] is not None else ""


def interval(bounds: Sequence[float]) -> str:
    """A 95 % interval of a share."""
    low, high = bounds
    return f"{_percent(low)}–{percent(high)}"


def percent(share: float) -> str:
    """A share without digits that tell nothing: `0.25 %`, `9.2 %`, `13 %`."""
    return f"{_percent(share)} %"


def _percent(share: float) -> str:
    value = share * 100
    if value < 1:
        return f"{value:.2g}"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}".removesuffix(".0")
