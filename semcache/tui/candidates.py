"""What the cache considered for one request: the stored prompts near it, what was made of them, and why."""

from __future__ import annotations

from textual.content import Content

from semcache.tui import units
from semcache.wire.receipts import CandidateRow
from semcache.wire.trust import Explanation, ScopeEvidence
from semcache.wording import differing, estimate, verdict_words

_VERDICTS = {"served": ("✔", ".exact"), "refused": ("✘", ".faint")}
# Glyph, score and probability take this many cells before the prompt.
_PROMPT_AT = 18


def candidates(found: Explanation, width: int) -> Content:
    """Two lines for each candidate, nearest first, then the evidence of the scopes; empty when nothing was near."""
    if not found["candidates"]:
        return Content("")
    lines = [Content.styled("considered", ".faint")]
    for row in found["candidates"]:
        lines += _candidate(row, width)
    lines += [_scope(scope) for scope in found["evidence"]]
    return Content("\n").join(lines)


def _candidate(row: CandidateRow, width: int) -> list[Content]:
    glyph, style = _VERDICTS.get(row["verdict"], ("·", ".faint"))
    likely = "" if row["p_correct"] is None else f"p {row['p_correct']:.3f}"
    numbers = f" {units.score(row['score'])}  {likely}".ljust(_PROMPT_AT - 1)
    room = max(1, width - _PROMPT_AT)
    prompt = Content(units.one_line(row["prompt"])).truncate(room, ellipsis=True)
    why = verdict_words(row)
    telling = differing(row["features"])
    if telling:
        why += f" · differs in {', '.join(telling)}"
    indent = "\n" + " " * _PROMPT_AT
    reason = Content(indent).join(Content.styled(f"{row['verdict']}: {why}", ".faint").wrap(room))
    return [Content.assemble((glyph, style), numbers, prompt), Content(" " * _PROMPT_AT) + reason]


def _scope(scope: ScopeEvidence) -> Content:
    style = ".failed" if scope["state"] == "suspended" else ".faint"
    words = f"{scope['scope']} scope: {scope['state']} · {estimate(scope)}"
    return Content.styled(f"{words} · {scope['words']}" if scope["words"] else words, style)
