"""A checksum sees every value, its type and its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.store.rows import checksum, with_utf8
from semcache.store.store import Store

from .samples import ALICE, FEW, alias, chain, entry, evidence
from .test_entries import edit

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


MEETS: dict[str, tuple[str, Callable[[Store], object]]] = {
    "entries": ("answer = 'no'", Store.list_entries),
    "aliases": ("prompt = 'p'", lambda store: store.aliases.of(entry(1).id)),
    "scope_evidence": ("state = 's'", lambda store: store.evidence.load_evidence("two")),
    "entry_evidence": ("num_same = 99", lambda store: store.evidence.load_evidence(ALICE.scope)),
    "prompt_blocks": ("hashes = 'x'", lambda store: store.check(fix=True)),
}


@pytest.mark.parametrize("table", MEETS)
@pytest.mark.parametrize("is_checked", [False, True])
def test_a_new_row_in_the_place_of_a_damaged_one_stays(
    store: Store, data_dir: Path, table: str, is_checked: bool
) -> None:
    """Somebody else deletes the damaged row first, and SQLite gives its rowid to one that is stored then."""
    damage, meet = MEETS[table]
    for number in (0, 1):
        store.put_entry(entry(number), [key.hash for key in chain(2)])
        store.aliases.put(alias(number))
        store.evidence.save_evidence(["one", "two"][number], "learned", [])
    store.evidence.save_evidence(ALICE.scope, "learned", [evidence(0), evidence(1)])
    edit(data_dir, f"UPDATE {table} SET {damage} WHERE rowid = 2")
    moved: list[str] = []

    def statement(sql: str) -> None:  # before it is executed
        if sql.startswith("BEGIN") and not moved:
            moved.append(sql)
            edit(data_dir, f"DELETE FROM {table} WHERE rowid = 2")
            edit(data_dir, f"UPDATE {table} SET rowid = 2 WHERE rowid = 1")

    store._db.connection.set_trace_callback(statement)
    (Store.check if is_checked else meet)(store, *([True] if is_checked else []))
    store._db.connection.set_trace_callback(None)
    assert moved
    assert store._db.number(f"SELECT count(*) FROM {table} WHERE rowid = 2") == 1
