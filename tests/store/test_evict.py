"""Who leaves first, as pure choices."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.store.evict import (
    ANSWER_SHARE,
    HALF_LIFE_S,
    ORDERS,
    Bytes,
    Candidate,
    Use,
    bytes_to_free,
    choose_answers,
    choose_blocks,
)

from .samples import FEW


def test_a_chain_shrinks_from_its_end_even_when_the_parent_is_older() -> None:
    candidates = [Candidate("root", None, 10), Candidate("mid", "root", 10), Candidate("leaf", "mid", 10)]
    assert choose_blocks(candidates, 10) == ["leaf"]
    assert choose_blocks(candidates, 11) == ["leaf", "mid"]
    assert choose_blocks(candidates, 30) == ["leaf", "mid", "root"]


def test_an_old_chain_goes_before_a_young_leaf() -> None:
    candidates = [Candidate("a0", None, 1), Candidate("a1", "a0", 1), Candidate("b0", None, 1)]
    assert choose_blocks(candidates, 2) == ["a1", "a0"]


def test_a_parent_of_somebody_elses_block_goes_last() -> None:
    candidates = [
        Candidate("shared", None, 5),
        Candidate("theirs", "shared", 5, may_leave=False),
        Candidate("mine", None, 5),
    ]
    assert choose_blocks(candidates, 5) == ["mine"]
    assert choose_blocks(candidates, 10) == ["mine", "shared"]


def test_a_pinned_block_keeps_its_place_and_its_children_do_not() -> None:
    candidates = [
        Candidate("root", None, 1, may_leave=False), Candidate("pinned", "root", 1, may_leave=False),
        Candidate("child", "pinned", 1), Candidate("side", "root", 1),
    ]  # fmt: skip
    assert choose_blocks(candidates, 100) == ["child", "side"]


def test_a_loop_of_parents_cannot_hang_or_stay_for_ever() -> None:
    assert set(choose_blocks([Candidate("a", "b", 1), Candidate("b", "a", 1)], 2)) == {"a", "b"}


@FEW
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=20), st.integers(0, 200))
def test_enough_is_freed_and_no_child_loses_its_parent(raw: list[tuple[int, int]], free_bytes: int) -> None:
    candidates = [
        Candidate(str(number), str(parent) if parent < number else None, size)
        for number, (parent, size) in enumerate(raw)
    ]
    victims = choose_blocks(candidates, free_bytes)
    sizes = {c.hash: c.size_bytes for c in candidates}
    assert len(set(victims)) == len(victims)
    assert sum(sizes[v] for v in victims) >= min(free_bytes, sum(sizes.values()))
    assert sum(sizes[v] for v in victims[:-1]) < max(free_bytes, 1)
    left = set(sizes) - set(victims)
    assert all(c.parent is None or c.parent in left for c in candidates if c.hash in left)


@FEW
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.booleans(), st.booleans()), max_size=20),
    st.integers(0, 90),
)
def test_a_users_own_blocks_and_their_numbers_of_children_say_as_much_as_all_blocks(
    raw: list[tuple[int, int, bool, bool]], free_bytes: int
) -> None:
    everybodys = [
        Candidate(str(number), str(parent) if parent < number else None, size, may_leave=is_mine and not is_pinned)
        for number, (parent, size, is_mine, is_pinned) in enumerate(raw)
    ]
    mine = [candidate for candidate, (_, _, is_mine, _) in zip(everybodys, raw, strict=True) if is_mine]
    children = Counter(c.parent for c in everybodys if c.parent is not None and c.parent in {m.hash for m in mine})
    assert choose_blocks(mine, free_bytes, children) == choose_blocks(everybodys, free_bytes)


def test_nothing_leaves_within_the_limit() -> None:
    assert bytes_to_free(100, Bytes(50, 50)) == Bytes(0, 0)


@FEW
@given(st.integers(0, 10_000), st.integers(0, 20_000), st.integers(0, 20_000))
def test_over_the_limit_enough_leaves_and_answers_keep_their_share(limit: int, answers: int, blocks: int) -> None:
    free = bytes_to_free(limit, Bytes(answers, blocks))
    assert answers - free.answers + blocks - free.blocks <= max(limit, 0)
    if answers <= ANSWER_SHARE * limit:
        assert free.answers == 0


@FEW
@given(*[st.integers(0, 20_000)] * 5)
def test_what_is_pinned_stays_and_the_rest_makes_room_for_it(
    limit: int, answers: int, blocks: int, pinned_answers: int, pinned_blocks: int
) -> None:
    pinned = Bytes(min(answers, pinned_answers), min(blocks, pinned_blocks))
    free = bytes_to_free(limit, Bytes(answers, blocks), pinned)
    assert 0 <= free.answers <= answers - pinned.answers
    assert 0 <= free.blocks <= blocks - pinned.blocks
    left = answers - free.answers + blocks - free.blocks
    assert left <= max(limit, pinned.answers + pinned.blocks)


def test_answers_make_room_where_pinned_blocks_leave_none() -> None:
    assert bytes_to_free(1000, Bytes(200, 900), Bytes(0, 900)) == Bytes(150, 0)
    assert bytes_to_free(1000, Bytes(400, 700), Bytes(300, 0)) == Bytes(100, 50)


def test_answers_leave_in_order_until_enough() -> None:
    assert choose_answers([("a", 5), ("b", 5), ("c", 5)], 6) == ["a", "b"]
    assert choose_answers([("a", 5)], 0) == []


USED = Use(added_s=100.0, last_used_s=1_700_000_000.0, hits=3, size_bytes=4096, compute_ms=50.0)


@pytest.mark.parametrize(
    ("order", "better"),
    [
        ("lru", replace(USED, last_used_s=USED.last_used_s + 1)),
        ("lfu", replace(USED, hits=4, last_used_s=0.0)),
        ("lfu", replace(USED, last_used_s=USED.last_used_s + 1)),
        ("fifo", replace(USED, added_s=101.0, last_used_s=0.0)),
        ("saved_compute", replace(USED, compute_ms=51.0)),
        ("saved_compute", replace(USED, size_bytes=4095)),
        ("saved_compute", replace(USED, hits=4)),
        ("saved_compute", replace(USED, last_used_s=USED.last_used_s + 1)),
        ("saved_compute", replace(USED, hits=7, last_used_s=USED.last_used_s - 0.99 * HALF_LIFE_S)),
        ("saved_compute", replace(USED, hits=1, last_used_s=USED.last_used_s + 1.01 * HALF_LIFE_S)),
    ],
)
def test_what_an_order_keeps(order: str, better: Use) -> None:
    assert ORDERS[order](USED) < ORDERS[order](better)


@pytest.mark.parametrize("order", ORDERS)
def test_a_damaged_row_has_a_rank_too(order: str) -> None:
    names = ("created_at", "last_used_at", "hits", "size_bytes", "compute_ms")
    for value in (None, "text", b"\xff", float("inf"), -5, 1e300):
        row = dict.fromkeys(names, value)
        assert sorted([ORDERS[order](Use.of_row(row)), ORDERS[order](USED)])


def test_saved_compute_saves_more_than_recency_when_costs_differ() -> None:
    """A trace of many cheap things that are asked for once and few dear ones that come back now and then."""
    rng = random.Random(5)
    trace = [("dear", rng.randrange(12)) if rng.random() < 0.2 else ("cheap", number) for number in range(4000)]
    saved_ms = {}
    for name, order in ORDERS.items():
        held: dict[tuple[str, int], Use] = {}
        saved_ms[name] = 0.0
        for at, item in enumerate(trace):
            use = held.pop(item, None)
            cost = 100.0 if item[0] == "dear" else 1.0
            if use is not None:
                saved_ms[name] += cost
                held[item] = replace(use, hits=use.hits + 1, last_used_s=float(at))
            else:
                if len(held) >= 10:
                    del held[min(held, key=lambda thing: order(held[thing]))]
                held[item] = Use(float(at), float(at), 0, 1000, cost)
    assert saved_ms["saved_compute"] > 2 * max(saved_ms["lru"], saved_ms["fifo"])
