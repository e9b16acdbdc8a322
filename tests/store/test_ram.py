"""RAM keeps to its bytes, and what leaves is what its order says."""

from __future__ import annotations

import pytest

from semcache.store.blocks import BlockKey, BlockRow
from semcache.store.disk import Unwritten
from semcache.store.evict import ORDERS
from semcache.store.ram import RamTier
from semcache.store.tensors import encode

from .samples import ALICE, Clock, chain, span

SIZE = span().size_bytes
KEYS = [chain(1, start=100 * number)[0] for number in range(5)]


def row(key: BlockKey, compute_ms: float = 1, seed: int = 0) -> BlockRow:
    block = Unwritten.of(key, span(seed=seed), ALICE, now_s=1.0, compute_ms=compute_ms)
    return block.row(encode(block.stored))


@pytest.mark.parametrize(("order", "leaves"), [("lru", 1), ("lfu", 2), ("fifo", 0), ("saved_compute", 3)])
def test_each_order_has_its_own_victim(order: str, leaves: int) -> None:
    clock = Clock()
    tier = RamTier(int(4.3 * SIZE), ORDERS[order], clock)  # a little more than four, which the low-water mark needs
    kept = [row(key, cost) for key, cost in zip(KEYS, (9, 9, 9, 1, 9), strict=True)]
    for kept_row in kept[:4]:
        clock.now_s += 1
        tier.put(kept_row, span())
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
    one = row(KEYS[0])
    other = row(KEYS[0], seed=1)
    tier.put(one, span())
    assert tier.get(other) is None
    assert not tier.holds(other)
    tier.put(other, span(seed=1))
    assert tier.get(one) is None
    assert tier.status().items == 1
    tier.discard([other])
    assert tier.status() == RamTier(4 * SIZE, ORDERS["lru"], Clock()).status()
