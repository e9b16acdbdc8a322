"""A killed writer leaves every committed row usable and nothing that lies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .faults import TABLES
from .machine import Killed, Machine
from .samples import (
    ALICE,
    NO_RAM,
    Clock,
    alias,
    block_files,
    chain,
    decision,
    entry,
    evidence,
    put_chain,
    same,
    span,
    usage_record,
)
from .world import NAMES, fill, rows_of

NUM_WRITES = 25


def write_until_killed(data_dir: Path, first: int, acknowledge: int) -> None:
    """What the child does; every number that it sends back was stored."""
    store = Store.open(data_dir, StoreLimits(1 << 20, 60_000))
    for number in range(first, first + 10**6):
        for key in chain(3, start=1000 * number):
            assert store.put_block(key, span(seed=key.first_token), ALICE)
        assert store.put_entry(entry(number))
        assert store.aliases.put(alias(number))
        assert store.decisions.record([decision(number)])
        assert store.evidence.save_evidence(ALICE.scope, f"{number}", [evidence(number)])
        os.write(acknowledge, f"{number}\n".encode())


def queue_until_killed(data_dir: Path, first: int, acknowledge: int) -> None:
    """The same with writes that wait; every number that it sends back was flushed, up to three more were not."""
    store = Store.open(data_dir, StoreLimits(1 << 20, 1 << 28, write_queue_bytes=1 << 20))
    for number in range(first, first + 10**6):
        for key in chain(3, start=1000 * number):
            assert store.put_block(key, span(seed=key.first_token), ALICE)
        if number % 4 == 3:
            store.flush()
            os.write(acknowledge, f"{number}\n".encode())


def kill_a_writer(
    data_dir: Path, first: int, write: Callable[[Path, int, int], None] = write_until_killed, num: int = NUM_WRITES
) -> int:
    """Fork a writer, kill it in the middle of its work, and return the last number that it acknowledged."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses no thread of ours; importing torch is slow
        pid = os.fork()
    if pid == 0:
        try:
            write(data_dir, first, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as lines:
        numbers = [int(line) for line, _ in zip(lines, range(num), strict=False)]
        os.kill(pid, signal.SIGKILL)
        numbers += [int(line) for line in lines if line.endswith("\n")]
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    return numbers[-1]


def test_kill_nine_in_a_write_loop(data_dir: Path) -> None:
    for round_ in range(3):
        last = kill_a_writer(data_dir, 10_000 * round_)
        store = Store.open(data_dir, NO_RAM)
        try:
            assert store.warnings == []
            result = store.check()
            assert result.problems == ()
            assert len(block_files(data_dir)) == result.blocks > 0
            assert store.find_exact(ALICE.scope, f"req{last}")
            assert store.aliases.find(ALICE.scope, f"alias{last}") == store.get_entry(entry(last).id)
            assert store.decisions.of_request(f"req_{last}")
            learned = store.evidence.load_evidence(ALICE.scope)
            assert int(learned.state or -1) >= last
            assert evidence(last) in learned.entries
            keys = chain(3, start=1000 * last)
            loaded = store.load_prefix(keys)
            assert len(loaded) == 3
            assert all(same(item, span(seed=key.first_token)) for key, item in zip(keys, loaded, strict=True))
            assert store.check(fix=True).ok
            assert store.check().problems == ()
        finally:
            store.close()


def test_kill_nine_while_writes_wait(data_dir: Path) -> None:
    rng = random.Random(7)
    acknowledged: list[int] = []
    for round_ in range(6):
        last = kill_a_writer(data_dir, 1000 * round_, queue_until_killed, rng.randint(1, 6))
        acknowledged += range(1000 * round_, last + 1)
        store = Store.open(data_dir, NO_RAM)
        try:
            assert store.warnings == []
            result = store.check()
            assert result.problems == ()
            assert len(block_files(data_dir)) == result.blocks >= 3 * len(acknowledged)
            for number in acknowledged:
                keys = chain(3, start=1000 * number)
                loaded = store.load_prefix(keys)
                assert len(loaded) == 3
                assert all(same(item, span(seed=key.first_token)) for key, item in zip(keys, loaded, strict=True))
        finally:
            store.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 17))
def test_death_at_every_file_operation(data_dir: Path, clock: Clock, at: int, after: bool) -> None:
    machine, left = Machine(), data_dir.with_name("left")
    machine.dies_at, machine.dies_after, machine.part = at, after, 1.0
    machine.at_death = lambda: shutil.copytree(data_dir, left)  # with SQLite's log, which `close` would empty
    store = Store.open(data_dir, NO_RAM, clock=clock, files=machine)
    done = []
    try:
        for number in range(4):
            put_chain(store, chain(1, start=100 * number))
            store.put_entry(entry(number))
            done.append(number)
        store._tiers.delete(store._blocks.all()[:3])
        store.clear(user=ALICE.user)
    except Killed:
        pass
    finally:
        store.close()
    assert machine.is_dead
    again = Store.open(left, NO_RAM, clock=clock)
    try:
        result = again.check()
        assert result.problems == ()
        assert len(block_files(left)) == result.blocks
        if at <= 12:  # three operations a block (the first finds no folder): no deletion was reached
            assert len(done) == (at - 1) // 3
            for number in done:
                assert len(again.load_prefix(chain(1, start=100 * number))) == 1
                assert again.find_exact(ALICE.scope, f"req{number}")
    finally:
        again.close()


# Rows of several tables that say the wrong thing without each other.
WRITES: dict[str, Callable[[Store], object]] = {
    "answer": lambda store: store.put_entry(entry(9), NAMES),
    "answer_anew": lambda store: store.put_entry(
        entry(9, request_key=entry(1).request_key, answer=entry(1).answer), NAMES
    ),
    "alias": lambda store: store.aliases.put(alias(1, "third")),
    "evidence": lambda store: store.evidence.save_evidence(ALICE.scope, "{}", [evidence(1, num_same=4), evidence(4)]),
    "decisions": lambda store: store.decisions.record([decision(3), decision(4)]),
    "request": lambda store: store.record_request(usage_record(2)),
    "deletion": lambda store: store.delete_entries([entry(1).id]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_death_at_every_statement_leaves_all_of_a_write_or_nothing(
    data_dir: Path, clock: Clock, write: Callable[[Store], object]
) -> None:
    with closing(Store.open(data_dir, NO_RAM, clock=clock)) as store:
        assert all(fill(store))
        assert store.pin_entry(entry(1).id)
    before = rows_of(data_dir, TABLES)
    after, num_statements = written(data_dir, clock, write, Machine())
    assert after != before
    for at in range(1, num_statements + 1):
        machine = Machine()
        machine.dies_at = at
        left, _ = written(data_dir, clock, write, machine)
        assert machine.is_dead
        assert left in (before, after), at


def written(
    data_dir: Path, clock: Clock, write: Callable[[Store], object], machine: Machine
) -> tuple[dict[str, list[tuple[object, ...]]], int]:
    """What a start finds after a write, or after the death in it, and how many statements its transactions took."""
    with tempfile.TemporaryDirectory(dir=data_dir.parent) as folder:
        lived, left = Path(folder) / "lived", Path(folder) / "left"
        shutil.copytree(data_dir, lived)
        machine.at_death = lambda: shutil.copytree(lived, left)  # with SQLite's log, which `close` would empty
        with closing(Store.open(lived, NO_RAM, clock=clock, files=machine)) as store:
            machine.num_steps = 0  # of a start there is nothing to lose
            machine.watch(store._db.connection)
            write(store)
            num_statements = machine.num_steps
        return rows_of(left if machine.is_dead else lived, TABLES), num_statements
