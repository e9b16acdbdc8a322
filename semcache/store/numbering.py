"""Small numbers in place of large values, each for as long as anybody holds it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value", bound=Hashable)


class Numbering(Generic[Value]):
    """Counts who holds a value; the number of one that nobody holds any more is given to another."""

    def __init__(self) -> None:
        self._numbers: dict[Value, int] = {}
        self._values: list[Value | None] = []  # by number, like the counts; None where it is free
        self._counts: list[int] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def get(self, value: Value) -> int | None:
        """None for a value that nobody holds."""
        return self._numbers.get(value)

    def hold(self, value: Value) -> int:
        """Its number, for one more that holds it."""
        number = self._numbers.get(value)
        if number is None:
            if not self._free:
                self._free.append(len(self._counts))
                self._values.append(None)
                self._counts.append(0)
            number = self._numbers[value] = self._free.pop()
            self._values[number] = value
        self._counts[number] += 1
        return number

    def let_go(self, number: int) -> None:
        """One that held it does so no more."""
        self._counts[number] -= 1
        if self._counts[number]:
            return
        value = self._values[number]
        assert value is not None, number
        del self._numbers[value]
        self._values[number] = None
        self._free.append(number)
