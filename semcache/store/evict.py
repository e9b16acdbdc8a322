"""What leaves when a budget is full: orders as rows of one table, and a pure choice of victims.

Answers save the most compute per byte, so they compete only with each other, for a quarter of the budget; KV has the
rest and whatever the answers leave. A chain of blocks shrinks from its end, because a block without its parent is dead.
"""

from __future__ import annotations

import heapq
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from semcache.store.rows import number

Name = TypeVar("Name")

ANSWER_SHARE = 0.25
# Evicting a little more than needed makes the cost of choosing disappear in the writes between two evictions.
LOW_WATER = 0.95


@dataclass(frozen=True)
class Use:
    """What one stored thing costs and saves, and how it was used; times in seconds on one clock."""

    added_s: float
    last_used_s: float
    hits: int
    size_bytes: int
    compute_ms: float  # what computing it again would take

    @staticmethod
    def of_row(row: Mapping[str, Any] | sqlite3.Row) -> Use:
        """From a row of blocks, entries or aliases; what a damaged row holds instead of a number counts as 0."""
        return Use(
            number(row["created_at"]), number(row["last_used_at"]), int(number(row["hits"])),
            int(number(row["size_bytes"])), number(row["compute_ms"]),
        )  # fmt: skip


Rank = Callable[[Use], tuple[float, ...]]

# Unused for this long, a thing is worth half; used once more, twice as much as a thing that was only stored.
HALF_LIFE_S = 6 * 3600.0
_LEAST_MS = 1e-6  # what was computed for nothing still has an order among its like


def _saved_compute(use: Use) -> tuple[float, ...]:
    """uses x compute_ms / size_bytes x 2^(-idle / HALF_LIFE_S), as a logarithm that needs no present time.

    Frequency times cost over size is the value of GreedyDual-Size-Frequency (Cherkasova 1998). That algorithm ages by
    adding the value of what it evicted last, which would have to be kept in every row; a half-life ages by itself.
    """
    saved_ms = (1 + max(0, use.hits)) * max(use.compute_ms, _LEAST_MS)
    return (math.log2(saved_ms / max(1, use.size_bytes)) + use.last_used_s / HALF_LIFE_S,)


# The eviction orders, for disk and RAM alike; what ranks lowest leaves first.
ORDERS: dict[str, Rank] = {
    "lru": lambda use: (use.last_used_s,),
    "lfu": lambda use: (use.hits, use.last_used_s),
    "fifo": lambda use: (use.added_s,),
    "saved_compute": _saved_compute,
}


@dataclass(frozen=True)
class Candidate:
    """A block that may leave; candidates come in the order of the policy."""

    hash: str
    parent: str | None
    size_bytes: int
    may_leave: bool = True  # False: it is pinned, and counts as somebody's child only


@dataclass(frozen=True)
class Bytes:
    """Of answers and of blocks."""

    answers: int
    blocks: int


def bytes_to_free(limit_bytes: int, used: Bytes, pinned: Bytes = Bytes(0, 0)) -> Bytes:
    """How much must go for both kinds together to be at the low-water mark; nothing while the limit is kept.

    Never more than what is not pinned: what one kind cannot give, the other does.
    """
    if used.answers + used.blocks <= limit_bytes:
        return Bytes(0, 0)
    loose = Bytes(max(0, used.answers - pinned.answers), max(0, used.blocks - pinned.blocks))
    answers = 0
    if used.answers > ANSWER_SHARE * limit_bytes:
        answers = min(loose.answers, used.answers - int(LOW_WATER * ANSWER_SHARE * limit_bytes))
    too_many = max(0, used.answers - answers + used.blocks - int(LOW_WATER * limit_bytes))
    blocks = min(loose.blocks, too_many)
    return Bytes(min(loose.answers, answers + too_many - blocks), blocks)


def choose_answers(rows: Iterable[tuple[Name, int]], free_bytes: int) -> list[Name]:
    """Names from (name, size) in policy order, until enough is freed."""
    victims: list[Name] = []
    for name, size_bytes in rows:
        if free_bytes <= 0:
            break
        victims.append(name)
        free_bytes -= size_bytes
    return victims


def choose_blocks(
    candidates: Sequence[Candidate], free_bytes: int, children: Mapping[str, int] | None = None
) -> list[str]:
    """Hashes to evict: the first leaf in policy order, again and again; a parent becomes a leaf with its last child.

    `children` says how many blocks have each one as their parent, where not all of these are candidates.
    """
    rank = {candidate.hash: number for number, candidate in enumerate(candidates)}
    if children is None:
        children = Counter(c.parent for c in candidates if c.parent is not None)
    num_children = Counter(children)
    leaves = [rank[c.hash] for c in candidates if c.may_leave and not num_children[c.hash]]
    heapq.heapify(leaves)
    victims: dict[str, None] = {}
    while leaves and free_bytes > 0:
        victim = candidates[heapq.heappop(leaves)]
        victims[victim.hash] = None
        free_bytes -= victim.size_bytes
        if victim.parent is not None:
            num_children[victim.parent] -= 1
            at = rank.get(victim.parent)
            if at is not None and candidates[at].may_leave and not num_children[victim.parent]:
                heapq.heappush(leaves, at)
    for candidate in candidates:  # only parents of blocks that are not up for eviction are left
        if free_bytes <= 0:
            break
        if candidate.may_leave and candidate.hash not in victims:
            victims[candidate.hash] = None
            free_bytes -= candidate.size_bytes
    return list(victims)
