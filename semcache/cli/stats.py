"""`semcache stats` and `semcache ps`: the counters and the state of the daemon."""

from __future__ import annotations

from typing import Annotated

import typer

from semcache.cli import render
from semcache.cli.options import Options, command
from semcache.wire.protocol import OUTCOMES
from semcache.wire.status import ModelStatus, SemanticStatus, Stats, Status, UserStats
from semcache.wording import estimate, percent, suspended_words


def register(app: typer.Typer) -> None:
    command(app, "stats", panel="Use")(stats)
    command(app, "ps", panel="Runtime")(ps)


def stats(
    options: Options,
    audits: Annotated[bool, typer.Option("--audits", help="What audits of semantic hits found, by scope.")] = False,
) -> int:
    """Requests, hits and savings per user, since the data folder was made."""
    from semcache.cli.connect import fetch

    if audits:
        from semcache.cli.audits import print_report

        report = fetch(options, lambda client: client.audit())
        if options.json:
            render.out_json(report)
        else:
            print_report(options, report)
        return 0
    found = fetch(options, lambda client: client.stats())
    if options.json:
        render.out_json(found)
    else:
        _print_stats(found)
    return 0


def _print_stats(stats: Stats) -> None:
    columns = (
        "user", "requests", *OUTCOMES, "answers", "compute", "prompt", "cached", "drafted", "accepted", "saved",
        "stored", "wrong hits",
    )  # fmt: skip
    rows = [_stats_row(user) for user in stats["users"]]
    if len(rows) != 1:
        rows.append(_stats_row({**stats["total"], "user": "all"}))
    render.table(columns, rows, right=columns[1:])


def _stats_row(user: UserStats) -> list[str]:
    return [
        user["user"],
        render.count(user["requests"]),
        *(render.count(user["outcomes"].get(outcome, 0)) for outcome in OUTCOMES),
        render.percent(user["answer_share"]),
        render.percent(user["compute_share"]),
        render.count(user["prompt_tokens"]),
        render.count(user["cached_tokens"]),
        render.count(user["drafted_tokens"]),
        render.count(user["accepted_tokens"]),
        render.seconds(user["saved_ms"] / 1000),
        # RAM holds copies of what lies on disk, so the tiers do not add up.
        render.size(max(user["stored_bytes"].values(), default=0)),
        estimate(user["wrong_hits"]),
    ]


def ps(options: Options) -> int:
    """The daemon, its model, queue and cache. Never starts or wakes anything."""
    from semcache.cli.connect import fetch

    status = fetch(options, lambda client: client.status(), start=False)
    if options.json:
        render.out_json(status)
    else:
        render.pairs(status_rows(status))
        for warning in status["warnings"]:
            render.note(options, f"semcache: {warning}", style=render.YELLOW)
    return 0


def status_rows(status: Status) -> list[tuple[str, str]]:
    """The lines of `ps` and `daemon status`."""
    queue, tiers, everything = status["queue"], status["tiers"], sum(status["outcomes"].values())
    hits = everything - status["outcomes"].get("miss", 0)
    cache = [f"{render.count(status['entries'])} entries, {render.count(status['blocks'])} blocks"]
    cache += [f"{tier} {render.size(t['used_bytes'])} of {render.size(t['limit_bytes'])}" for tier, t in tiers.items()]
    cache += [f"{hits} of {everything} requests reused something"] if everything else []
    address = f"unix:{status['socket']}" + (f" · {status['url']}" if status["url"] else "")
    started = " · started by a command" if status["autostarted"] else ""
    rows = [
        (
            "DAEMON",
            f"{status['state']} · pid {status['pid']} · v{status['version']} · "
            f"up {render.seconds(status['uptime_s'])}{started}",
        ),
        ("ADDRESS", address),
        ("MODEL", model_line(status["model"])),
        ("QUEUE", f"{queue.get('running', 0)} running · {queue.get('waiting', 0)} waiting"),
        ("CACHE", " · ".join(cache)),
        ("SEMANTIC", semantic_line(status["semantic"])),
    ]
    if status["semantic"]["suspended"]:
        rows.append(("SUSPENDED", suspended_words(status["semantic"]["suspended"])))
    return rows


def semantic_line(semantic: SemanticStatus) -> str:
    """The policy, its budgets, what audits found, and what the embedder is doing."""
    budgets = (
        f"at most {percent(semantic['max_error'])} wrong per request, {percent(semantic['max_hit_error'])} per hit"
    )
    rules = {"verified": f"verified: {budgets}", "threshold": f"threshold ≥ {semantic['threshold']:g}"}
    parts = [rules.get(semantic["policy"], semantic["policy"])]
    parts += [estimate(semantic)] if semantic["policy"] != "off" else []
    parts += [f"{render.count(semantic['due_audits'])} audits due"] if semantic["due_audits"] else []
    parts += [] if semantic["drafts"] else ["no drafts"]
    return " · ".join([*parts, f"embedder {semantic['state']}"]) + (
        f" ({semantic['reason']})" if semantic["reason"] else ""
    )


def model_line(model: ModelStatus) -> str:
    """One model in one line, without what is not known."""
    state = model["state"] + (f" {model['stage']}" if model["stage"] else "")
    state += f" {model['progress']:.0%}" if model["progress"] is not None and model["state"] == "loading" else ""
    parts = [model["name"], state, model["dtype"], model["device"]]
    parts.append(render.size(model["weights_bytes"]) if model["weights_bytes"] else None)
    parts.append(f"context {render.count(model['context_tokens'])}" if model["context_tokens"] else None)
    parts.append(f"{model['slots']} slots" if model["slots"] else None)
    parts.append(f"unloads in {render.seconds(model['unloads_in_s'])}" if model["unloads_in_s"] is not None else None)
    return " · ".join(part for part in parts if part) + (f": {model['error']}" if model["error"] else "")
