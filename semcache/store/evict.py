"""What leaves when a budget is full: orders as rows of one table, and a pure choice of victims.

Answers save the most compute per byte, so they compete only with each other, for a quarter of the budget; KV has the
rest and whatever the answers leave. A chain of blocks shrinks from its end, because a block without its parent is dead.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

ANSWER_SHARE = 0.25
# Evicting a little more than needed makes the cost of choosing disappear in the writes between two evictions.
LOW_WATER = 0.95


@dataclass(frozen=True)
class Use:
    """How one thing in RAM was used; numbers grow with each use of the tier."""

    added: int
    last_used: int
    hits: int


@dataclass(frozen=True)
class Order:
    """One eviction order, for rows on disk and for things in RAM; what comes first leaves first."""

    sql: str
    ram: Callable[[Use], tuple[int, ...]]


ORDERS = {
    "lru": Order("last_used_at", lambda use: (use.last_used,)),
    "lfu": Order("hits, last_used_at", lambda use: (use.hits, use.last_used)),
    "fifo": Order("created_at", lambda use: (use.added,)),
}


@dataclass(frozen=True)
class Candidate:
    """A block that may leave; candidates come in the order of the policy."""

    hash: str
    parent: str | None
    size_bytes: int
    is_mine: bool = True  # False: counts as somebody's child, but is not up for eviction


@dataclass(frozen=True)
class Budget:
    """Bytes to free from answers and from blocks."""

    answer_bytes: int
    block_bytes: int


def bytes_to_free(limit_bytes: int, used_answer_bytes: int, used_block_bytes: int) -> Budget:
    """How much must go for both kinds together to be at the low-water mark; nothing while the limit is kept."""
    if used_answer_bytes + used_block_bytes <= limit_bytes:
        return Budget(0, 0)
    answers = 0
    if used_answer_bytes > ANSWER_SHARE * limit_bytes:
        answers = used_answer_bytes - int(LOW_WATER * ANSWER_SHARE * limit_bytes)
    left = used_answer_bytes - answers + used_block_bytes
    return Budget(answers, max(0, left - int(LOW_WATER * limit_bytes)))


def choose_answers(rows: Iterable[tuple[str, int]], free_bytes: int) -> list[str]:
    """Ids from (id, size) in policy order, until enough is freed."""
    victims: list[str] = []
    for entry_id, size_bytes in rows:
        if free_bytes <= 0:
            break
        victims.append(entry_id)
        free_bytes -= size_bytes
    return victims


def choose_blocks(candidates: Sequence[Candidate], free_bytes: int) -> list[str]:
    """Hashes to evict: the first leaf in policy order, again and again; a parent becomes a leaf with its last child."""
    rank = {candidate.hash: number for number, candidate in enumerate(candidates)}
    num_children = Counter(c.parent for c in candidates if c.parent is not None)
    leaves = [rank[c.hash] for c in candidates if c.is_mine and not num_children[c.hash]]
    heapq.heapify(leaves)
    victims: dict[str, None] = {}
    while leaves and free_bytes > 0:
        victim = candidates[heapq.heappop(leaves)]
        victims[victim.hash] = None
        free_bytes -= victim.size_bytes
        if victim.parent is not None:
            num_children[victim.parent] -= 1
            at = rank.get(victim.parent)
            if at is not None and candidates[at].is_mine and not num_children[victim.parent]:
                heapq.heappush(leaves, at)
    for candidate in candidates:  # only parents of blocks that are not up for eviction are left
        if free_bytes <= 0:
            break
        if candidate.is_mine and candidate.hash not in victims:
            victims[candidate.hash] = None
            free_bytes -= candidate.size_bytes
    return list(victims)
