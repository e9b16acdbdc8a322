"""Rows and files agree, or the check says what does not and repairs it."""

from __future__ import annotations

import errno
from pathlib import Path

from semcache.store.files import Files
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, BrokenFiles, alias, block_files, chain, entry, evidence, put_chain, span, tail, tail_of
from .test_entries import edit


def kinds(store: Store, *, fix: bool = False) -> list[tuple[str, str]]:
    return sorted((problem.kind, problem.item) for problem in store.check(fix).problems)


def test_a_healthy_store_is_clean(store: Store, data_dir: Path) -> None:
    put_chain(store, chain(2))
    store.put_tail(tail_of(chain(2)), tail(), ALICE)
    store.put_entry(entry(1))
    result = store.check()
    assert (result.ok, result.fixed, result.problems, result.database) == (True, False, (), "ok")
    assert (result.entries, result.blocks) == (1, 3)
    assert result.size_bytes == sum(path.stat().st_size for path in block_files(data_dir))


def test_a_size_that_would_mislead_the_budget_is_damage(store: Store) -> None:
    for number in (1, 2):
        store.put_entry(entry(number))
        store.aliases.put(alias(number))
    with store._db.transaction() as connection:
        connection.execute("UPDATE entries SET size_bytes = size_bytes + (1 << 40) WHERE id = ?", (entry(1).id,))
        connection.execute("UPDATE aliases SET size_bytes = 'many' WHERE entry_id = ?", (entry(2).id,))
    assert kinds(store, fix=True) == [("damaged_alias", entry(2).id), ("damaged_entry", entry(1).id)]
    assert store.check().problems == ()
    assert [item.id for item in store.list_entries()] == [entry(2).id]


def test_an_orphan_is_no_problem(store: Store) -> None:
    keys = chain(2)
    assert store.put_block(keys[1], span(), ALICE)
    assert store.check().ok


def test_every_kind_of_problem_is_named_and_repaired(store: Store, data_dir: Path) -> None:
    keys = chain(6)
    put_chain(store, keys)
    store.put_entry(entry(1))
    store.put_entry(entry(2))
    names = [f"mini/{key.hash[:2]}/{key.hash}.safetensors" for key in keys]
    paths = [data_dir / "kv" / name for name in names]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-3])
    paths[2].write_bytes(bytes(paths[2].stat().st_size))
    paths[3].write_bytes(paths[4].read_bytes())
    stray = data_dir / "kv" / "mini" / "stale.safetensors"
    stray.write_bytes(b"x")
    leftover = paths[4].with_name("a.tmp")
    leftover.write_bytes(b"x")
    with store._db.transaction() as connection:
        connection.execute("UPDATE entries SET answer = 'no' WHERE id = ?", (entry(1).id,))
        connection.execute("UPDATE blocks SET num_tokens = 9 WHERE hash = ?", (keys[5].hash,))
    expected = sorted(
        [("damaged_block", names[number]) for number in (0, 1, 2, 3, 5)]
        + [("damaged_entry", entry(1).id), ("stray_file", "mini/stale.safetensors")]
        + [("leftover_temp", leftover.relative_to(data_dir / "kv").as_posix())]
    )
    assert kinds(store) == expected
    assert not store.check().ok
    result = store.check(fix=True)
    assert (result.ok, result.fixed, len(result.problems)) == (True, True, len(expected))
    assert kinds(store) == []
    assert store.missing(keys) == [key for number, key in enumerate(keys) if number != 4]
    assert [found.id for found in store.list_entries()] == [entry(2).id]


def test_aliases_and_evidence_that_fit_nothing_are_named_and_removed(store: Store, data_dir: Path) -> None:
    for number in range(4):
        store.put_entry(entry(number))
        store.aliases.put(alias(number))
    store.evidence.save_evidence(ALICE.scope, "{}", [evidence(number) for number in range(4)])
    store.evidence.save_evidence("global", "{}", [])
    edit(data_dir, "DELETE FROM entries WHERE id = ?", entry(0).id)  # this connection enforces no foreign keys
    edit(data_dir, "UPDATE aliases SET prompt = 'p' WHERE entry_id = ?", entry(1).id)
    edit(data_dir, "UPDATE entry_evidence SET num_same = 9 WHERE entry_id = ?", entry(2).id)
    edit(data_dir, "UPDATE scope_evidence SET state = '[]' WHERE scope = 'global'")
    expected = [
        ("damaged_alias", entry(1).id), ("damaged_evidence", entry(2).id), ("damaged_evidence", "global"),
        ("orphan_alias", entry(0).id), ("orphan_evidence", entry(0).id),
    ]  # fmt: skip
    assert kinds(store) == expected
    result = store.check(fix=True)
    assert (result.ok, result.fixed, len(result.problems)) == (True, True, len(expected))
    assert kinds(store) == []
    assert store.aliases.find(ALICE.scope, "alias3") == store.get_entry(entry(3).id)
    kept = store.evidence.load_evidence(ALICE.scope)
    assert kept.state == "{}"
    assert {item.entry_id for item in kept.entries} == {entry(1).id, entry(3).id}


def test_what_cannot_be_repaired_is_not_called_fixed(open_store: OpenStore, data_dir: Path) -> None:
    files = BrokenFiles()
    store = open_store(files=files)
    put_chain(store, chain(1))
    (data_dir / "kv" / "stray").write_bytes(b"x")
    files.fail["unlink"] = errno.EACCES
    result = store.check(fix=True)
    assert (result.ok, result.fixed) == (False, False)
    files.fail["read"] = errno.EIO
    assert ("unreadable_block", block_files(data_dir)[0].relative_to(data_dir / "kv").as_posix()) in kinds(store)


def test_a_file_that_was_published_since_the_folder_was_listed_is_no_leftover(
    open_store: OpenStore, data_dir: Path
) -> None:
    class Publishing(Files):
        """Ends its write after the folder was listed, at the first look at its temporary file."""

        temp: Path | None = None

        def is_open_temp(self, path: Path) -> bool:
            if self.temp is not None:
                self.publish(self.temp, path.with_name("done"), durable=False)
                self.temp = None
            return super().is_open_temp(path)

    files = Publishing()
    store = open_store(files=files)
    files.temp = files.write_temp(data_dir / "kv" / "mini" / "ab" / "done", [b"whole"], durable=False)
    assert kinds(store) == []


def test_a_write_in_progress_is_no_leftover(open_store: OpenStore, data_dir: Path) -> None:
    files = BrokenFiles()
    store = open_store(files=files)
    path = data_dir / "kv" / "mini" / "ab" / "busy.safetensors"
    temp = files.write_temp(path, [b"half"], durable=False)
    assert kinds(store, fix=True) == []
    files.discard_temp(temp)
    assert not temp.exists()
