"""`semcache cache tune`: what other budgets would have served of the traffic that was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from semcache import errors
from semcache.cli import render
from semcache.cli.options import Options
from semcache.wire.trust import TuneReport

if TYPE_CHECKING:
    from semcache.client import Client

# Around the budgets of now, where none are given.
FACTORS = (0.5, 1.0, 2.0, 4.0)

Budget = Annotated[list[float] | None, typer.Option(help="Budget per request to try (repeatable).")]
HitBudget = Annotated[list[float] | None, typer.Option(help="Budget per semantic hit to try (repeatable).")]


def tune(options: Options, max_error: Budget = None, max_hit_error: HitBudget = None) -> int:
    """What other budgets would have served, and how often wrongly. Changes nothing.

    Without budgets: a grid around those of now. Apply one with `semcache config set semantic.max_error 0.02`.

    Examples: `semcache cache tune`, `semcache cache tune --max-error 0.01 --max-error 0.02 --max-hit-error 0.05`
    """
    from semcache.cli.connect import fetch

    for name, shares in (("max-error", max_error), ("max-hit-error", max_hit_error)):
        for share in shares or ():
            if not 0 < share < 1:
                raise errors.UsageError(
                    f"--{name} {share:g}: must be a share between 0 and 1, as 0.02 for 2 %", param=name
                )

    async def compare(client: Client) -> TuneReport:
        return await client.tune(*await _grid(client, max_error, max_hit_error))

    report = fetch(options, compare)
    if options.json:
        render.out_json(report)
    else:
        _print(options, report)
    return 0


async def _grid(
    client: Client, max_error: Sequence[float] | None, max_hit_error: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """The budgets given, or else some around those of now."""
    if max_error and max_hit_error:
        return sorted(set(max_error)), sorted(set(max_hit_error))
    now = (await client.status())["semantic"]
    return (
        sorted(set(max_error or _around(now["max_error"]))),
        sorted(set(max_hit_error or _around(now["max_hit_error"]))),
    )


def _around(share: float) -> list[float]:
    return [around for factor in FACTORS if 0 < (around := float(f"{share * factor:.6g}")) < 1]


def _print(options: Options, report: TuneReport) -> None:
    from semcache.wording import interval, percent

    columns = ("max error", "max hit error", "served", "of", "share", "labelled", "wrong", "rate (95 %)", "")
    rows = []
    for row in report["rows"]:
        rate = render.UNKNOWN if row["rate"] is None else percent(row["rate"])
        rate += f" ({interval(row['ci95'])})" if row["ci95"] is not None else ""
        now = report["current"]
        is_now = (row["max_error"], row["max_hit_error"]) == (now["max_error"], now["max_hit_error"])
        rows.append(
            (
                percent(row["max_error"]),
                percent(row["max_hit_error"]),
                render.count(row["served"]),
                render.count(row["requests"]),
                render.percent(row["share"]),
                render.count(row["labelled"]),
                render.count(row["wrong"]),
                rate,
                " · ".join(part for part in ("now" if is_now else "", row["words"]) if part),
            )
        )
    render.table(columns, rows, right=columns[:-1])
    if not any(row["requests"] for row in report["rows"]):
        render.note(options, "nothing recorded yet: ask differently worded questions first")
