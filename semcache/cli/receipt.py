"""A receipt in words: what was reused, why, and how long it took."""

from __future__ import annotations

from semcache import wire
from semcache.cli import render


def receipt_line(receipt: wire.AskReceipt) -> str:
    """One line: outcome, what matched, tokens saved, time."""
    cache, timing = receipt["cache"], receipt["timing_ms"]
    parts = [_outcome(cache), *_reuse(receipt)]
    if timing["ttft"] is not None:
        parts.append(f"first token {render.millis(timing['ttft'])}")
    if timing["total"] is not None:
        total = timing["total"]
        parts.append(f"{total / 1000:.2f} s" if total >= 10 else render.millis(total))
    return " · ".join(parts)


def _outcome(cache: wire.CacheReceipt) -> str:
    words = f"{wire.OUTCOME_GLYPHS.get(cache['outcome'], '·')} {cache['outcome']}"
    if cache["outcome"] == "miss":
        return f"{words} ({cache['reason']})"
    if cache["score"] is not None and cache["outcome"] != "exact":
        words += f" {cache['score']:.3f}"
    if cache["matched_prompt"]:
        words += f" ← {render.quoted(cache['matched_prompt'])}"
    return words + (f" ({render.ago(cache['entry_age_s'])})" if cache["entry_age_s"] is not None else "")


def _reuse(receipt: wire.AskReceipt) -> list[str]:
    cache, usage = receipt["cache"], receipt["usage"]
    parts = []
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    if cached:
        parts.append(f"{cached} of {usage['prompt_tokens']} prompt tokens reused")
    if cache["draft_tokens"]:
        parts.append(f"{cache['draft_accepted']} of {cache['draft_tokens']} draft tokens accepted")
    if cache["stored"]:
        parts.append("stored")
    return parts


def explanation(receipt: wire.AskReceipt) -> list[str]:
    """What `--explain` says: one fact per line."""
    cache, usage = receipt["cache"], receipt["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    facts = {
        "outcome": f"{wire.OUTCOME_GLYPHS.get(cache['outcome'], '·')} {cache['outcome']}",
        "reason": cache["reason"],
        "strategy": cache["strategy"],
        "scope": cache["scope"] or render.UNKNOWN,
        "score": render.UNKNOWN if cache["score"] is None else f"{cache['score']:.4f}",
        "entry": cache["entry"] or render.UNKNOWN,
        "matched": render.quoted(cache["matched_prompt"], 100) if cache["matched_prompt"] else render.UNKNOWN,
        "age": render.UNKNOWN if cache["entry_age_s"] is None else render.ago(cache["entry_age_s"]),
        "prompt": f"{cached} of {usage['prompt_tokens']} tokens reused, {cache['prefix_tokens']} as restored KV",
        "draft": f"{cache['draft_accepted']} of {cache['draft_tokens']} tokens accepted",
        "stored": "yes" if cache["stored"] else "no",
        "time": _times(receipt["timing_ms"]),
    }
    width = max(map(len, facts))
    return [f"{name:<{width}}  {fact}" for name, fact in facts.items()]


def _times(timing: wire.Timing) -> str:
    names = {"ttft": "first token", "second_token": "second token"}
    spans = {names.get(name, name): span for name, span in timing.items() if isinstance(span, (int, float))}
    return " · ".join(f"{name} {render.millis(span)}" for name, span in spans.items())
