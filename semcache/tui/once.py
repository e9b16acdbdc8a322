"""`top --once`: the same numbers as plain text or JSON, for pipes and scripts. Knows nothing about Textual widgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from semcache.tui import units
from semcache.tui.feed import Source
from semcache.tui.outcomes import ANSWER_HITS, COMPUTE_HITS, badge, why
from semcache.tui.panels import NO_LATENCY, semantic
from semcache.tui.request_log import local_time
from semcache.tui.users import USER_COLUMNS, busiest_first, user_cells
from semcache.wire.protocol import OUTCOMES
from semcache.wire.receipts import AskReceipt
from semcache.wire.status import Stats, Status
from semcache.wording import estimate, suspended_words

NUM_REQUESTS = 20
_MAX_CELL = 48


async def print_once(source: Source, out: TextIO, *, as_json: bool) -> None:
    """Ask once and write once; an unreachable daemon raises."""
    status, stats = await source.status(), await source.stats()
    requests = await source.requests(limit=NUM_REQUESTS)
    if as_json:
        out.write(json.dumps({"status": status, "stats": stats, "requests": requests}, ensure_ascii=False) + "\n")
    else:
        out.write(as_text(status, stats, requests) + "\n")


def as_text(status: Status, stats: Stats, requests: Sequence[AskReceipt]) -> str:
    """Header, outcomes, users and the newest requests."""
    blocks = [_head(status), _outcomes(status), _saved(status, stats)]
    if stats["users"]:
        titles = [column.title for column in USER_COLUMNS]
        blocks.append(_table(titles, [user_cells(user) for user in busiest_first(stats)], num_left=1))
    titles = ["time", "outcome", "user", "prompt", "matched or reason", "score", "ttft", "tokens", "total"]
    blocks.append(
        _table(titles, [_request(r) for r in requests], num_left=5)
        if requests
        else 'no requests yet; ask with: semcache ask "hello"'
    )
    return "\n\n".join(blocks)


def _head(status: Status) -> str:
    model = status["model"]
    parts = [f"semcache {status['version']}", status["state"], f"{model['name']} {model['state']}"]
    if model["unloads_in_s"] is not None:
        parts.append(f"unloads in {units.duration(model['unloads_in_s'])}")
    parts += [f"unix:{status['socket']}", f"pid {status['pid']}", f"up {units.duration(status['uptime_s'])}"]
    suspended = status["semantic"]["suspended"]
    warnings = [suspended_words(suspended)] if suspended else []
    warnings += status["warnings"]
    return "\n".join([" · ".join(parts), *(f"warning: {warning}" for warning in warnings)])


def _outcomes(status: Status) -> str:
    counted = status["outcomes"]
    whole = sum(counted.get(outcome, 0) for outcome in OUTCOMES)
    rows = []
    for outcome in OUTCOMES:
        measured = status["latency"].get(outcome, NO_LATENCY)
        times = (measured["ttft_p50"], measured["ttft_p95"], measured["total_p50"])
        share = units.percent(units.share(counted.get(outcome, 0), whole))
        rows.append((outcome, units.count(counted.get(outcome, 0)), share, *(units.ms(time) for time in times)))
    for name, members in (("answer hits", ANSWER_HITS), ("compute hits", COMPUTE_HITS)):
        hits = sum(counted.get(outcome, 0) for outcome in members)
        rows.append((name, units.count(hits), units.percent(units.share(hits, whole)), "", "", ""))
    return _table(["outcome", "n", "share", "ttft p50", "ttft p95", "total p50"], rows, num_left=1)


def _saved(status: Status, stats: Stats) -> str:
    total = stats["total"]
    share = units.percent(units.share(total["cached_tokens"], total["prompt_tokens"]))
    lines = [
        f"saved    {units.count(total['cached_tokens'])} prompt tokens ({share}), "
        f"{units.seconds(total['saved_ms'] / 1e3)}; wrong semantic hits: {estimate(total['wrong_hits'])}",
        f"cache    {units.count(status['entries'])} entries, {units.count(status['blocks'])} blocks; "
        + ", ".join(
            f"{name} {units.size(tier['used_bytes'])} of {units.size(tier['limit_bytes'])}"
            for name, tier in status["tiers"].items()
        ),
        f"trust    {semantic(status['semantic'], 200)}",
    ]
    return "\n".join(lines)


def _request(receipt: AskReceipt) -> tuple[str, ...]:
    timing = receipt["timing_ms"]
    return (
        local_time(receipt), badge(receipt).plain, receipt["user"], units.one_line(receipt["prompt"]),
        why(receipt).plain, units.score(receipt["cache"]["score"]), units.ms(timing["ttft"]),
        units.count(receipt["usage"]["completion_tokens"]), units.ms(timing["total"]),
    )  # fmt: skip


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int) -> str:
    """Columns as wide as their text; the first `num_left` are aligned left, numbers right."""
    cells = [tuple(titles), *(tuple(_cut(cell) for cell in row) for row in rows)]
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(titles))]
    lines = []
    for row in cells:
        padded = [
            set_cell_size(cell, width) if i < num_left else " " * (width - cell_len(cell)) + cell
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cut(cell: str) -> str:
    return cell if cell_len(cell) <= _MAX_CELL else set_cell_size(cell, _MAX_CELL - 1) + "…"
