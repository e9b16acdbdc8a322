"""Who asks what, in which order: rows to jobs. Pure, so the same options give the same plan on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from semcache.replay.dataset import Row
from semcache.replay.options import ReplayOptions


@dataclass(frozen=True)
class Job:
    """One request to send. `index` is its place in the plan, from 0."""

    index: int
    row: Row
    prompt: int  # number of the first row of the file that asks the same
    user: str | None
    round: int  # 1 to --repeat


def plan_jobs(rows: Sequence[Row], options: ReplayOptions) -> list[Job]:
    """Shuffle, then limit, then deal the rows to the users in turn, then repeat the whole round.

    A user asks the same rows in every round: a repetition is then one that a per-user cache may answer.
    """
    first: dict[tuple[str | None, str], int] = {}
    for row in rows:
        first.setdefault((row.context, row.question), row.number)
    chosen = list(rows)
    if options.order_seed is not None:
        random.Random(options.order_seed).shuffle(chosen)  # noqa: S311 - an order, not a secret
    chosen = chosen[: options.limit]
    users = [f"u{number}" for number in range(1, (options.users or 0) + 1)]
    return [
        Job(
            index=turn * len(chosen) + at,
            row=row,
            prompt=first[row.context, row.question],
            user=users[at % len(users)] if users else None,
            round=turn + 1,
        )
        for turn in range(options.repeat)
        for at, row in enumerate(chosen)
    ]


def distinct_prompts(jobs: Sequence[Job]) -> list[Job]:
    """The first job of every prompt: what a baseline needs to ask."""
    first: dict[int, Job] = {}
    for job in jobs:
        first.setdefault(job.prompt, job)
    return list(first.values())
