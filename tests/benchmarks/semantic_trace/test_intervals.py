"""Wilson's interval against known values and its own invariants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.semantic_trace.intervals import wilson


def test_known_values() -> None:
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert wilson(0, 0) is None


@given(st.integers(1, 5000).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_it_holds_the_share_and_narrows(counted: tuple[int, int]) -> None:
    num_wrong, num = counted
    low, high = wilson(num_wrong, num) or (1, 0)
    assert 0.0 <= low <= num_wrong / num + 1e-12
    assert num_wrong / num - 1e-12 <= high <= 1.0
    more_low, more_high = wilson(10 * num_wrong, 10 * num) or (0, 1)
    assert more_high - more_low < high - low
    other_low, other_high = wilson(num - num_wrong, num) or (1, 0)
    assert (1 - other_high, 1 - other_low) == pytest.approx((low, high), abs=1e-9)
