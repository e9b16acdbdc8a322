"""How an outcome and a state are shown: glyph, word, colour name. The sentences are in `semcache/wording.py`.

The glyph is the share of the work that was reused, so it reads without colour. Colour names are component classes of
the screen (`app.tcss` gives them their theme colours).
"""

from __future__ import annotations

from textual.content import Content

from semcache.wire.protocol import OUTCOME_GLYPHS
from semcache.wire.receipts import AskReceipt

ANSWER_HITS = ("exact", "semantic")
COMPUTE_HITS = ("exact", "semantic", "draft", "prefix")

# Every colour name that the screens know.
STYLES = {*OUTCOME_GLYPHS, "running", "failed", "faint", "strong", "added", "removed"}

STATES = ("lost", "queued", "matching", "waiting", "prefilling", "decoding", "finished", "failed", "cancelled")
TERMINAL = ("finished", "failed", "cancelled")
_STATE_GLYPHS = {"failed": "✗", "cancelled": "✗", "lost": "?"}


def state_of(receipt: AskReceipt) -> str:
    return receipt.get("state", "finished")


def is_running(receipt: AskReceipt) -> bool:
    return state_of(receipt) not in (*TERMINAL, "lost")


def word_of(receipt: AskReceipt) -> str:
    """The outcome of a finished request, the state of any other."""
    state = state_of(receipt)
    return str(receipt["cache"]["outcome"]) if state == "finished" else state


def outcome_badge(outcome: str) -> Content:
    return Content.styled(
        f"{OUTCOME_GLYPHS.get(outcome, '·')} {outcome}", f".{outcome}" if outcome in OUTCOME_GLYPHS else ""
    )


def badge(receipt: AskReceipt) -> Content:
    """Glyph and word; a running request shows how far it is."""
    word = word_of(receipt)
    if word in OUTCOME_GLYPHS:
        return outcome_badge(word)
    style = ".running" if is_running(receipt) else ".failed"
    return Content.styled(f"{_STATE_GLYPHS.get(word, '▸')} {word}", style)


def why(receipt: AskReceipt) -> Content:
    """What was reused, or why nothing was, in a few words."""
    cache = receipt["cache"]
    outcome, matched = word_of(receipt), " ".join((cache["matched_prompt"] or "").split())
    if outcome == "failed":
        return Content.styled(" ".join((receipt.get("error") or "failed").split()), ".failed")
    if outcome not in OUTCOME_GLYPHS:
        return Content.styled(matched and f"near: {matched}", ".faint")
    if outcome == "semantic":
        return Content(matched)
    if outcome == "draft":
        passes = cache.get("passes")
        how = "drafted from" if passes is None else f"in {passes} {'pass' if passes == 1 else 'passes'} from"
        return Content(f"{cache['draft_accepted']}/{cache['draft_tokens']} {how}: {matched}")
    if outcome == "prefix":
        return Content(f"{cache['prefix_tokens']:,} prompt tokens restored")
    if outcome == "exact":
        if cache["reason"] == "alias":
            return Content(f"= alias of: {matched}")
        return Content.styled("= in flight" if cache["reason"] == "in_flight" else "= identical", ".faint")
    near = f" · near: {matched}" if matched else ""
    return Content.styled(f"{cache['reason'].removeprefix('policy:').replace('_', ' ')}{near}", ".faint")
