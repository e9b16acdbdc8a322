"""Clearing: what is still to be written is forgotten before and after the rows, what was learned after them."""

from __future__ import annotations

from pathlib import Path

from semcache.config import Config
from semcache.daemon.library import Library
from semcache.store.store import Store, StoreLimits
from tests.daemon.cache.words import Cache, asked

MINE = ["user:os:1/ann", "global:os:1"]


def test_nothing_is_written_behind_a_removal(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    entry = Cache(store).answer(asked("what is rain"))
    seen: list[tuple[str, str, bool]] = []

    def forget(what: str, scope: str) -> None:
        seen.append((what, scope, store.get_entry(entry.id) is not None))

    library = Library(
        config=Config(), store=store, forget_scope=lambda scope: forget("learned", scope),
        forget_entry=lambda scope, entry_id: None, forget_turns=lambda scope: forget("turns", scope),
    )  # fmt: skip
    num_entries, num_blocks = library.clear("os:1", "os:1/ann", None)
    assert num_entries == 1
    assert num_blocks > 0
    assert [(what, scope) for what, scope, is_there in seen if is_there] == [("turns", scope) for scope in MINE]
    after = {(what, scope) for what, scope, is_there in seen if not is_there}
    assert after == {(what, scope) for what in ("turns", "learned") for scope in MINE}
    seen.clear()
    library.clear("os:1", "os:1/ann", "run")
    assert {scope for _, scope, _ in seen} == {f"{scope}#run" for scope in MINE}
    store.close()
