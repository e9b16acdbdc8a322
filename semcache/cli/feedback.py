"""`semcache cache mark-wrong`: the user's own verdict on an answer that was stored for another wording."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from semcache import errors
from semcache.cli import render
from semcache.cli.options import Options
from semcache.wire.receipts import AskReceipt
from semcache.wire.trust import FeedbackResult

if TYPE_CHECKING:
    from semcache.client import Client

# How far back the newest semantic hit is looked for.
NUM_LOOKED_AT = 1000


def mark_wrong(
    options: Options,
    marked_id: Annotated[
        str | None, typer.Argument(help="A request or an entry; your newest semantic hit if left out.", metavar="[ID]")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="The newest hit of this sub-user.")] = None,
) -> int:
    """Say that a semantic hit was wrong: that wording never gets that answer again.

    Nothing is asked. `req_…` is about the hit of that request; `e_…` about an entry that is wrong in itself: it goes.

    Examples: `semcache cache mark-wrong`, `semcache cache mark-wrong req_8c1f`, `semcache cache mark-wrong -u alice`
    """
    from semcache.cli.connect import fetch
    from semcache.wording import marked_words

    if marked_id is not None and not marked_id.startswith(("req_", "e_")):
        raise errors.UsageError(f"{marked_id!r} is the id of neither a request (req_…) nor an entry (e_…)", param="id")
    if marked_id is not None and user is not None:
        raise errors.UsageError(f"{marked_id} and --user {user} both say what to mark; give one of them", param="user")

    async def mark(client: Client) -> tuple[AskReceipt | None, FeedbackResult]:
        hit = await _newest_hit(client, user) if marked_id is None else None
        return hit, await client.feedback(marked_id or (hit["id"] if hit else ""), "wrong")

    hit, done = fetch(options, mark)
    if options.json:
        render.out_json(done)
        return 0
    if hit is not None:
        matched = hit["cache"]["matched_prompt"] or ""
        asked, given = render.quoted(hit["prompt"]), render.quoted(matched)
        render.note(options, f"{hit['user']} asked {asked} and was given the answer to {given}")
    render.note(options, f"marked {done['verdict']}: {marked_words(done)}")
    return 0


async def _newest_hit(client: Client, user: str | None) -> AskReceipt:
    """The newest answer of another wording among the caller's requests."""
    from semcache.wording import is_other_wording

    for receipt in await client.requests(limit=NUM_LOOKED_AT):
        mine = user is None or receipt["user"].endswith(f"/{user}")
        if mine and is_other_wording(receipt["cache"]):
            return receipt
    whose = f" of {user}" if user else ""
    raise errors.NotFoundError(
        f"no semantic hit{whose} among the newest requests; name a request or an entry (`semcache top` shows them)"
    )
