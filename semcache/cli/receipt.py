"""A receipt in words: what was reused, why, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence

from semcache.cli import render
from semcache.wire.protocol import OUTCOME_GLYPHS
from semcache.wire.receipts import AskReceipt, CacheReceipt, CandidateRow, Timing
from semcache.wording import differing, reason_words, verdict_words


def receipt_line(receipt: AskReceipt) -> str:
    """One line: outcome, what matched, tokens saved, time."""
    cache, timing = receipt["cache"], receipt["timing_ms"]
    parts = [_outcome(cache), *_reuse(receipt)]
    if timing["ttft"] is not None:
        parts.append(f"first token {render.millis(timing['ttft'])}")
    if timing["total"] is not None:
        total = timing["total"]
        parts.append(f"{total / 1000:.2f} s" if total >= 10 else render.millis(total))
    return " · ".join(parts)


def _outcome(cache: CacheReceipt) -> str:
    words = f"{OUTCOME_GLYPHS.get(cache['outcome'], '·')} {cache['outcome']}"
    if cache["outcome"] == "miss":
        return f"{words} ({cache['reason']})"
    if cache["score"] is not None and cache["outcome"] != "exact":
        words += f" {cache['score']:.3f}"
    if cache["matched_prompt"]:
        words += f" ← {render.quoted(cache['matched_prompt'])}"
    return words + (f" ({render.ago(cache['entry_age_s'])})" if cache["entry_age_s"] is not None else "")


def _reuse(receipt: AskReceipt) -> list[str]:
    cache, usage = receipt["cache"], receipt["usage"]
    parts = []
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    if cached:
        parts.append(f"{cached} of {usage['prompt_tokens']} prompt tokens reused")
    if cache["draft_tokens"]:
        parts.append(draft_words(cache))
    if cache["stored"]:
        parts.append("stored")
    return parts


def draft_words(cache: CacheReceipt) -> str:
    """How many drafted tokens the model kept, and in how many forward passes where that is known."""
    passes = cache.get("passes")
    words = f"{cache['draft_accepted']} of {cache['draft_tokens']} draft tokens accepted"
    return words if passes is None else f"{words} in {passes} {'pass' if passes == 1 else 'passes'}"


def explanation(receipt: AskReceipt) -> list[str]:
    """What `--explain` says: one fact per line."""
    cache, usage = receipt["cache"], receipt["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    facts = {
        "outcome": f"{OUTCOME_GLYPHS.get(cache['outcome'], '·')} {cache['outcome']}",
        "reason": reason_line(cache["reason"]),
        "strategy": cache["strategy"],
        "scope": cache["scope"] or render.UNKNOWN,
        "score": render.UNKNOWN if cache["score"] is None else f"{cache['score']:.4f}",
        "entry": cache["entry"] or render.UNKNOWN,
        "matched": render.quoted(cache["matched_prompt"], 100) if cache["matched_prompt"] else render.UNKNOWN,
        "age": render.UNKNOWN if cache["entry_age_s"] is None else render.ago(cache["entry_age_s"]),
        "prompt": f"{cached} of {usage['prompt_tokens']} tokens reused, {cache['prefix_tokens']} as restored KV",
        "draft": draft_words(cache) if cache["draft_tokens"] else "none",
        "stored": "yes" if cache["stored"] else "no",
        "time": _times(receipt["timing_ms"]),
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {fact}" for name, fact in facts.items()]
    if receipt.get("explain"):
        lines += ["", *candidate_lines(receipt["explain"])]
    return lines


def reason_line(reason: str) -> str:
    """The code that scripts see, and what it means."""
    words = reason_words(reason)
    return reason if words == reason else f"{reason}: {words}"


def candidate_lines(candidates: Sequence[CandidateRow]) -> list[str]:
    """The stored prompts that were looked at, as a table: nearest first, what was decided, and why."""
    columns = ("score", "p(correct)", "verdict", "entry", "scope", "differs in", "prompt", "why")
    rows = [
        (
            f"{row['score']:.4f}",
            render.UNKNOWN if row["p_correct"] is None else f"{row['p_correct']:.4f}",
            row["verdict"],
            row["entry"],
            row["scope"],
            ", ".join(differing(row["features"])) or render.UNKNOWN,
            render.cut(render.one_line(row["prompt"]), 60),
            verdict_words(row),
        )
        for row in candidates
    ]
    return render.aligned(columns, rows, right=("score", "p(correct)"))


def _times(timing: Timing) -> str:
    names = {"ttft": "first token", "second_token": "second token"}
    spans = {names.get(name, name): span for name, span in timing.items() if isinstance(span, (int, float))}
    return " · ".join(f"{name} {render.millis(span)}" for name, span in spans.items())
