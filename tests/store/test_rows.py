"""A checksum sees every value, its type and its place."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from semcache.store.rows import checksum, with_utf8

from .samples import FEW

VALUES = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4), st.binary(max_size=4))


@FEW
@given(st.tuples(VALUES, VALUES), st.tuples(VALUES, VALUES))
def test_only_equal_rows_have_equal_checksums(left: tuple[Any, Any], right: tuple[Any, Any]) -> None:
    is_same = [repr(value) for value in left] == [repr(value) for value in right]
    rows = [dict(zip("ab", values, strict=True)) for values in (left, right)]
    assert (checksum(rows[0], "ab") == checksum(rows[1], "ab")) == is_same


def test_columns_that_are_not_named_do_not_count() -> None:
    assert checksum({"a": 1, "b": 2}, "a") == checksum({"a": 1, "b": 3}, "a") != checksum({"a": "1"}, "a")


@FEW
@given(st.text())
def test_text_always_has_utf8_afterwards(text: str) -> None:
    assert with_utf8(text) == text
    assert with_utf8(text + "\ud800").encode() == text.encode() + b"?"
