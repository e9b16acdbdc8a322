"""`semcache cache pin` and `unpin`: what stays whatever is full or expired."""

from __future__ import annotations

from typing import Annotated

import typer

from semcache.cli import render
from semcache.cli.options import Options
from semcache.wire.entries import PinResult

EntryIds = Annotated[list[str], typer.Argument(metavar="ID...")]


def pin(options: Options, entry_ids: EntryIds) -> int:
    """Keep stored answers and the KV of their prompts, however full the cache is and however old they get.

    `cache rm` removes them all the same, `cache clear` only with --all. Pins may hold half of the disk tier and half of
    your quota; a pin that would hold more is refused.
    """
    done, missing = _set(options, entry_ids, pinned=True)
    num_bytes = sum(result["bytes"] for result in done)
    if options.json:
        render.out_json({"pinned": len(done), "bytes": num_bytes, "not_found": missing})
    else:
        held = f": {render.size(num_bytes)} with {render.count(sum(result['blocks'] for result in done))} blocks of KV"
        render.note(options, f"pinned {len(done)} of {len(done) + len(missing)}{held if done else ''}")
        warn_of_missing(missing)
    return 1 if missing else 0


def unpin(options: Options, entry_ids: EntryIds) -> int:
    """Let pinned answers go again when the cache is full, or when they expire."""
    done, missing = _set(options, entry_ids, pinned=False)
    if options.json:
        render.out_json({"unpinned": len(done), "not_found": missing})
    else:
        render.note(options, f"unpinned {len(done)} of {len(done) + len(missing)}")
        warn_of_missing(missing)
    return 1 if missing else 0


def _set(options: Options, entry_ids: list[str], *, pinned: bool) -> tuple[list[PinResult], list[str]]:
    """What is done, and the ids that name nothing; a refusal ends it, and what was pinned before stays pinned."""
    from semcache.cli.connect import fetch_each

    return fetch_each(options, entry_ids, lambda client, entry_id: client.pin(entry_id, pinned=pinned))


def warn_of_missing(missing: list[str]) -> None:
    for entry_id in missing:
        render.warn(f"semcache: no entry {entry_id!r}; `semcache cache ls` shows what is stored")
