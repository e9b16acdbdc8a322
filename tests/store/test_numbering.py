"""Numbers for as long as somebody holds a value."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from semcache.store.numbering import Numbering

from .samples import FEW


@FEW
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=120))
def test_a_value_keeps_its_number_while_held_and_no_other_has_it(steps: list[tuple[bool, int]]) -> None:
    ours: Numbering[str] = Numbering()
    held: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    for holds, which in steps:
        value = f"v{which}"
        if holds:
            number = ours.hold(value)
            assert numbers.setdefault(value, number) == number
            held[value] += 1
        elif held[value]:
            ours.let_go(numbers[value])
            held[value] -= 1
            if not held[value]:
                del numbers[value]
        assert len(set(numbers.values())) == len(numbers) == len(ours)
        assert ours.get(value) == numbers.get(value)


def test_numbers_are_given_again() -> None:
    ours: Numbering[int] = Numbering()
    assert {ours.hold(value) for value in range(3)} == {0, 1, 2}
    for value in range(1000):
        ours.let_go(ours.hold(100 + value))
    assert ours.hold(5000) == 3
