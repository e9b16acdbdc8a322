"""`semcache stats --audits`: the evidence behind semantic hits, scope by scope, and the newest decisions."""

from __future__ import annotations

from semcache.cli import render
from semcache.cli.options import Options
from semcache.wire.trust import AuditReport, AuditRow, ScopeEvidence
from semcache.wording import estimate, percent

_SCOPE_COLUMNS = ("scope", "user", "state", "requests", "served", "labels", "wrong hits", "")
_AUDIT_COLUMNS = ("age", "request", "served", "score", "p(correct)", "found", "by", "prompt", "matched")


def print_report(options: Options, report: AuditReport) -> None:
    """The scopes, then the newest decisions; a note says how audits are made."""
    render.table(_SCOPE_COLUMNS, map(_scope_row, report["scopes"]), right=("requests", "served", "labels"))
    if report["recent"]:
        render.out()
        render.table(_AUDIT_COLUMNS, map(_audit_row, report["recent"]), right=("score", "p(correct)"))
    rate = f"{percent(report['audit_rate'])} of hits audited once a scope is well known"
    compared = f"answers compared by {report['equivalence']}"
    render.note(options, f"{report['policy']} · {rate} · {compared} · {render.count(report['due'])} audits due")


def _scope_row(scope: ScopeEvidence) -> list[str]:
    return [
        scope["scope"],
        scope["user"] or render.UNKNOWN,
        scope["state"],
        render.count(scope["requests"]),
        render.count(scope["served"]),
        render.count(scope["labels"]),
        estimate(scope),
        scope["words"],
    ]


def _audit_row(row: AuditRow) -> list[str]:
    found = {None: render.UNKNOWN, True: "right", False: "wrong"}[row["same"]]
    return [
        render.since(row["at"]),
        row["request"],
        "served" if row["served"] else "not served",
        f"{row['score']:.4f}",
        render.UNKNOWN if row["p_correct"] is None else f"{row['p_correct']:.4f}",
        found,
        row["source"] or render.UNKNOWN,
        render.cut(render.one_line(row["prompt"]), 40),
        render.cut(render.one_line(row["matched_prompt"]), 40),
    ]
