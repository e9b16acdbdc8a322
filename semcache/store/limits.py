"""How much a store may hold, for how long, and in which order things leave."""

from __future__ import annotations

from dataclasses import dataclass

from semcache.store.evict import ORDERS, Rank

MOST_BYTES = 20 * 10**9  # on disk, unless somebody asks for more


@dataclass(frozen=True)
class StoreLimits:
    """Budgets and orders; a quota or TTL of 0 is none, a disk tier of 0 follows what is free."""

    ram_bytes: int
    disk_bytes: int
    user_quota_bytes: int = 0
    ttl_s: int = 0
    eviction: str = "lru"
    durable: bool = False
    write_queue_bytes: int = 0  # KV that may wait for the disk; 0 writes before `put_block` returns

    @property
    def order(self) -> Rank:
        return ORDERS[self.eviction]


def automatic_bytes(free_bytes: int, stored_bytes: int) -> int:
    """The limit where nobody set one. What is stored counts as free: else every restart would leave less to it."""
    return min(MOST_BYTES, (free_bytes + stored_bytes) // 4)
