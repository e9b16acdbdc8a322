"""`semcache cache`: look at what is stored, and remove it; why it is served is told by the files beside."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from semcache import errors
from semcache.cli import render
from semcache.cli.explain import explain, find
from semcache.cli.feedback import mark_wrong
from semcache.cli.options import Options, command, group
from semcache.cli.pin import pin, unpin, warn_of_missing
from semcache.cli.tune import tune
from semcache.wire.entries import EntryDetail, EntryEvidence, EntrySummary

Sort = Literal["used", "created", "hits", "size"]


def register(app: typer.Typer) -> None:
    cache = group("Look at what is stored, why it is served, and remove it.")
    command(cache, "ls")(ls)
    command(cache, "show")(show)
    command(cache, "find")(find)
    command(cache, "explain")(explain)
    command(cache, "rm")(rm)
    command(cache, "mark-wrong")(mark_wrong)
    command(cache, "pin")(pin)
    command(cache, "unpin")(unpin)
    command(cache, "clear")(clear)
    command(cache, "check")(check)
    command(cache, "tune")(tune)
    app.add_typer(cache, name="cache", rich_help_panel="Cache")


def ls(
    options: Options,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Entries of this sub-user.")] = None,
    sort: Annotated[Sort, typer.Option(help="Which come first.")] = "used",
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many.", min=1)] = 50,
    match: Annotated[str | None, typer.Option(help="Entries whose prompt contains this text.")] = None,
) -> int:
    """List stored answers."""
    from semcache.cli.connect import fetch

    entries = fetch(options, lambda client: client.entries(limit=limit, sort=sort, match=match, user=user))
    if options.json:
        render.out_json({"entries": entries})
        return 0
    columns = ("id", "user", "scope", "used", "hits", "tokens", "size", "pin", "prompt")
    render.table(columns, map(_entry_row, entries), right=("hits", "tokens", "size"))
    if not entries:
        render.note(options, "nothing stored" + (" that fits" if match or user else " yet"))
    elif len(entries) == limit:
        render.note(options, f"the first {limit}; --limit shows more")
    return 0


def _entry_row(entry: EntrySummary) -> list[str]:
    return [
        entry["id"],
        entry["user"],
        entry["scope"],
        render.since(entry["last_used"]),
        str(entry["hits"]),
        f"{entry['prompt_tokens']}+{entry['completion_tokens']}",
        render.size(entry["size_bytes"]),
        "pinned" if entry["pinned"] else "",
        entry["prompt"],
    ]


def show(options: Options, entry_id: Annotated[str, typer.Argument(metavar="ID")]) -> int:
    """Show one stored answer with everything that is known about it."""
    from semcache.cli.connect import fetch

    entry = fetch(options, lambda client: client.entry(entry_id))
    if options.json:
        render.out_json(entry)
        return 0
    sampling = ", ".join(f"{name} {value}" for name, value in entry["sampling"].items() if value is not None)
    render.pairs(
        [
            ("id", entry["id"]),
            ("user", f"{entry['user']} ({entry['scope']}, {entry['strategy']})"),
            ("model", f"{entry['model']} {entry['fingerprint']}"),
            ("created", f"{entry['created']} ({render.since(entry['created'])})"),
            ("used", f"{render.since(entry['last_used'])}, {entry['hits']} hits"),
            ("pinned", "yes: no budget takes it, nor its prompt's KV" if entry["pinned"] else "no"),
            ("expires", _expiry(entry)),
            ("tokens", f"{entry['prompt_tokens']} prompt, {entry['completion_tokens']} answer"),
            ("stored", _stored(entry)),
            ("matched by", "identical text and meaning" if entry["embedded"] else "identical text only"),
            ("evidence", _evidence(entry["evidence"])),
            *(("also for", render.one_line(alias)) for alias in entry["aliases"]),
            ("sampling", sampling or render.UNKNOWN),
            ("ended by", entry["finish_reason"]),
            *((message["role"], render.one_line(message["content"])) for message in entry["messages"]),
            ("answer", render.one_line(entry["answer"])),
        ]
    )
    return 0


def _expiry(entry: EntryDetail) -> str:
    if entry["expires"] is None:
        return "never"
    return f"{entry['expires']}, but not while it is pinned" if entry["pinned"] else entry["expires"]


def _stored(entry: EntryDetail) -> str:
    answer, blocks = render.size(entry["size_bytes"]), entry["blocks"]
    if blocks is None:
        return f"{answer}; the blocks of its prompt's KV are not known"
    return f"{answer}, and {render.size(entry['kv_bytes'])} of its prompt's KV in {render.count(blocks)} blocks"


def _evidence(evidence: EntryEvidence | None) -> str:
    if evidence is None:
        return "none yet: no other wording was compared with it"
    words = f"other wordings wanted this answer {evidence['same']}×, another answer {evidence['other']}×"
    regret = evidence["mean_regret"]
    return words if regret is None else f"{words}; mean regret {regret:.3f} nats a token"


def rm(options: Options, entry_ids: Annotated[list[str], typer.Argument(metavar="ID...")]) -> int:
    """Remove stored answers by id, pinned ones too."""
    from semcache.cli.connect import fetch_each

    done, missing = fetch_each(options, entry_ids, lambda client, entry_id: client.delete_entry(entry_id))
    removed = sum(done)
    if options.json:
        render.out_json({"removed": removed, "not_found": missing})
    else:
        render.note(options, f"removed {removed} of {removed + len(missing)}")
        warn_of_missing(missing)
    return 1 if missing else 0


def clear(
    options: Options,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Only this sub-user.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Only this namespace.")] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Pinned answers too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Remove everything you stored, or the part named; pinned answers and their KV stay unless --all says otherwise."""
    from semcache.cli.connect import fetch

    what = f"what {user} stored" if user else f"namespace {namespace}" if namespace else "everything you stored"
    what += ", pinned answers too" if everything else ", except pinned answers"
    if not yes:
        if options.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise errors.UsageError(f"this would remove {what}; add --yes to do it without a question", param="yes")
        typer.confirm(f"Remove {what}?", abort=True, err=True)

    removed = fetch(options, lambda client: client.clear(namespace=namespace, user=user, keep_pinned=not everything))
    if options.json:
        render.out_json(removed)
    else:
        kept = f"; {render.count(removed['pinned'])} pinned stay, --all removes them too" if removed["pinned"] else ""
        render.note(options, f"removed {removed['entries']} entries and {removed['blocks']} blocks{kept}")
    return 0


def check(
    options: Options, fix: Annotated[bool, typer.Option("--fix", help="Repair what can be repaired.")] = False
) -> int:
    """Compare the database with the files; exit 1 when they differ and it was not repaired."""
    from semcache.cli.connect import fetch

    report = fetch(options, lambda client: client.check(fix))
    if options.json:
        render.out_json(report)
    else:
        for problem in report["problems"]:
            where = problem.get("path") or problem.get("id") or ""
            render.out(f"{problem['kind']}  {where}  {problem.get('detail', '')}".rstrip())
        state = "repaired" if report["fixed"] else "ok" if report["ok"] else "add --fix to repair"
        render.out(
            f"{render.count(report['entries'])} entries, {render.count(report['blocks'])} blocks, "
            f"{render.size(report['bytes'])}, {len(report['problems'])} problems: {state}"
        )
    return 0 if report["ok"] else 1
