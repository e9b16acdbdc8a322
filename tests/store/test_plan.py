"""Loading or computing: whichever the measured speeds say is faster, block by block from the start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.store.plan import PROBE_EVERY, Piece, Planner

from .samples import FEW

RAM, DISK = Piece("ram", 1000, 64), Piece("disk", 1000, 64)


def planner(disk_ms: float, ram_ms: float = 0.0) -> Planner:
    """One that has seen what 1,000 bytes take."""
    made = Planner()
    made.observe("disk", 1000, disk_ms)
    made.observe("ram", 1000, ram_ms)
    return made


def test_the_faster_way_is_taken() -> None:
    assert planner(disk_ms=63).worth_loading([DISK] * 16, ms_per_token=1.0) == 16
    assert planner(disk_ms=65).worth_loading([DISK] * 16, ms_per_token=1.0) == 0
    assert planner(disk_ms=65).worth_loading([], ms_per_token=1.0) == 0


def test_a_slow_tier_ends_the_load_but_not_what_came_before() -> None:
    assert planner(disk_ms=65).worth_loading([RAM, RAM, DISK, DISK], ms_per_token=1.0) == 2


def test_a_dear_block_is_loaded_when_what_lies_behind_it_makes_up_for_it() -> None:
    assert planner(disk_ms=70).worth_loading([DISK, RAM, RAM], ms_per_token=1.0) == 3
    assert planner(disk_ms=70).worth_loading([RAM, DISK, DISK], ms_per_token=1.0) == 1


def test_what_was_never_measured_is_tried() -> None:
    assert Planner().worth_loading([DISK] * 3, ms_per_token=0.001) == 3
    assert Planner().cost_ms([DISK]) == 0


def test_a_tier_that_is_left_alone_is_looked_at_again_with_one_block() -> None:
    slow = planner(disk_ms=1000)
    tried = [slow.worth_loading([DISK] * 8, ms_per_token=1.0) for _ in range(2 * PROBE_EVERY)]
    assert [at for at, num in enumerate(tried, start=1) if num] == [PROBE_EVERY, 2 * PROBE_EVERY]
    assert set(tried) == {0, 1}
    for _ in range(30):
        slow.observe("disk", 1000, 1.0)
    assert slow.worth_loading([DISK] * 8, ms_per_token=1.0) == 8


def test_speeds_follow_what_is_seen() -> None:
    made = planner(disk_ms=1.0)
    assert made.cost_ms([DISK]) == 1.0
    made.observe("disk", 1000, 2.0)
    assert made.cost_ms([DISK, DISK]) == 2 * 1.25
    made.observe("disk", 0, 5.0)  # nothing was read
    made.observe("disk", 1000, 1e9)
    assert made.cost_ms([DISK]) == 1.25 * 1.75  # one hiccup
    for _ in range(40):
        made.observe("disk", 1000, 1.25)
    assert made.cost_ms([DISK]) == pytest.approx(1.25, rel=1e-4)


@FEW
@given(
    st.lists(st.builds(Piece, st.sampled_from(["ram", "disk"]), st.integers(1, 9999), st.integers(0, 64)), max_size=12),
    st.floats(0, 5),
    st.floats(0.001, 100),
)
def test_no_other_leading_part_is_faster(pieces: list[Piece], ms_per_token: float, disk_ms: float) -> None:
    made = planner(disk_ms, ram_ms=0.01)

    def total_ms(num: int) -> float:
        return made.cost_ms(pieces[:num]) + sum(piece.num_tokens * ms_per_token for piece in pieces[num:])

    best = min(total_ms(num) for num in range(len(pieces) + 1))
    assert total_ms(made.worth_loading(pieces, ms_per_token)) <= best + 1e-6
