"""`semcache cache explain` and `find`: which stored answers are near a prompt, and what is made of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from semcache.cli import render
from semcache.cli.ask import CacheMode, Strategy
from semcache.cli.options import Options
from semcache.wire.protocol import OUTCOME_GLYPHS
from semcache.wire.trust import Explanation, ScopeEvidence

REQUEST_PREFIX = "req_"


def explain(
    options: Options,
    prompt: Annotated[str, typer.Argument(help="A prompt, or the id of a past request.", metavar="PROMPT|req_ID")],
    user: Annotated[str | None, typer.Option("--user", "-u", help="Sub-user who would ask.")] = None,
    strategy: Annotated[Strategy | None, typer.Option(help="What may be read.")] = None,
    cache: Annotated[CacheMode | None, typer.Option(help="Which reuse is allowed.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
) -> int:
    """What would answer a prompt now, or answered a request, and why. Computes and stores nothing.

    Examples: `semcache cache explain "capital of australia?"`, `semcache cache explain req_8c1f`
    """
    from semcache import errors
    from semcache.cli.connect import fetch

    fields = {"user": user, "cache_strategy": strategy, "cache": cache, "system": system}
    given = {name: value for name, value in fields.items() if value is not None}
    past = _is_request(prompt)
    if past and given:
        raise errors.UsageError(f"{prompt} was asked already: it has its own user, strategy and system message")

    if past:
        found = fetch(options, lambda client: client.explained(prompt))
    else:
        body: dict[str, Any] = {"prompt": prompt, **given}
        found = fetch(options, lambda client: client.explain(body), retries=True)
    if options.json:
        render.out_json(found)
    else:
        _print(found, past=past)
    return 0


def _is_request(text: str) -> bool:
    return text.startswith(REQUEST_PREFIX) and not any(char.isspace() for char in text)


def _print(found: Explanation, *, past: bool) -> None:
    from semcache.cli.receipt import candidate_lines, reason_line
    from semcache.wording import percent

    glyph = OUTCOME_GLYPHS.get(found["outcome"], "·")
    budgets = f"at most {percent(found['max_error'])} of requests and {percent(found['max_hit_error'])} of hits wrong"
    policy = {
        "verified": f"verified: {budgets}",
        "threshold": f"threshold: a cosine of {found['threshold']:g} or more; higher is stricter",
    }
    rows = [
        ("prompt", render.one_line(found["prompt"])),
        ("user", f"{found['user']} ({found['strategy']})"),
        ("was" if past else "would be", f"{glyph} {found['outcome']}"),
        ("reason", reason_line(found["reason"])),
        ("policy", policy.get(found["policy"], found["policy"])),
        ("donor", found["donor"] or "none: nothing would be drafted"),
        ("prefix", f"{render.count(found['prefix_tokens'])} prompt tokens restored"),
        *((_owner(scope), scope_words(scope)) for scope in found["evidence"]),
    ]
    render.pairs(rows)
    render.out()
    if found["candidates"]:
        for line in candidate_lines(found["candidates"]):
            render.out(line)
    else:
        render.out("no stored prompt was considered")


def _owner(scope: ScopeEvidence) -> str:
    return f"{scope['scope']} scope"


def scope_words(scope: ScopeEvidence) -> str:
    """State, evidence and what it means, of one scope, in one line."""
    from semcache.wording import estimate

    counted = f"{render.count(scope['served'])} served of {render.count(scope['requests'])}"
    parts = [scope["state"], counted, f"{render.count(scope['labels'])} labels", estimate(scope), scope["words"]]
    return " · ".join(part for part in parts if part)


def find(
    options: Options,
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    user: Annotated[str | None, typer.Option("--user", "-u", help="Entries of this sub-user.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many.", min=1)] = 10,
) -> int:
    """List the stored prompts that are nearest in meaning, nearest first.

    Example: `semcache cache find "capital cities" --limit 5`
    """
    from semcache.cli.connect import fetch

    entries = fetch(options, lambda client: client.find(text, user=user, limit=limit), retries=True)
    if options.json:
        render.out_json({"entries": entries})
        return 0
    rows = [
        (
            f"{entry['score']:.4f}",
            entry["id"],
            entry["user"],
            entry["scope"],
            str(entry["hits"]),
            render.cut(render.one_line(entry["prompt"]), 60),
            entry["answer"],
        )
        for entry in entries
    ]
    render.table(("score", "id", "user", "scope", "hits", "prompt", "answer"), rows, right=("score", "hits"))
    if not entries:
        render.note(options, "nothing stored that could be compared; `semcache cache ls` shows everything")
    return 0
