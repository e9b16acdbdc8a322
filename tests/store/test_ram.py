"""RAM keeps to its bytes, and what leaves is what its order says."""

from __future__ import annotations

import pytest

from semcache.store.disk import Unwritten
from semcache.store.evict import ORDERS
from semcache.store.ram import RamTier

from .samples import ALICE, Clock, chain, span

SIZE = span().size_bytes
KEYS = [chain(1, start=100 * number)[0] for number in range(5)]


def rows(*compute_ms: float) -> list[Unwritten]:
    return [
        Unwritten.of(key, span(), ALICE, now_s=1.0, compute_ms=cost)
        for key, cost in zip(KEYS, compute_ms, strict=False)
    ]


@pytest.mark.parametrize(("order", "leaves"), [("lru", 1), ("lfu", 2), ("fifo", 0), ("saved_compute", 3)])
def test_each_order_has_its_own_victim(order: str, leaves: int) -> None:
    clock = Clock()
    tier = RamTier(int(4.3 * SIZE), ORDERS[order], clock)  # a little more than four, which the low-water mark needs
    kept = [item.row() for item in rows(9, 9, 9, 1, 9)]
    for row in kept[:4]:
        clock.now_s += 1
        tier.put(row, span())
    for at in (1, 1, 3, 3, 0, 0, 2):  # how often and in which order they were used
        clock.now_s += 1
        assert tier.get(kept[at]) is not None
    clock.now_s += 1
    if order == "lru":
        for at in (0, 2, 3):
            tier.get(kept[at])
    tier.put(kept[4], span())
    assert [at for at in range(5) if not tier.holds(kept[at])] == [leaves]
    assert tier.status().used_bytes == 4 * SIZE
    assert tier.evictions == 1


def test_another_file_of_the_same_name_is_another_thing() -> None:
    tier = RamTier(4 * SIZE, ORDERS["lru"], Clock())
    one = Unwritten.of(KEYS[0], span(), ALICE, now_s=1.0, compute_ms=1).row()
    other = Unwritten.of(KEYS[0], span(seed=1), ALICE, now_s=1.0, compute_ms=1).row()
    tier.put(one, span())
    assert tier.get(other) is None
    assert not tier.holds(other)
    tier.put(other, span(seed=1))
    assert tier.get(one) is None
    assert tier.status().items == 1
    tier.discard([other])
    assert tier.status() == RamTier(4 * SIZE, ORDERS["lru"], Clock()).status()
