"""Whatever happens to files, rows or the machine: what is served is what was stored, and the rest is a counted miss."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from semcache.errors import StoreError
from semcache.store import recovery
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from tests.amount import IS_NIGHTLY

from .faults import ALWAYS_SEEN, AT_FILES, AT_REST, MOST_LOST, TABLES
from .machine import LIVE, Killed, Machine
from .samples import ALICE, BOB, Clock, block_files, chain, entry, span
from .world import CHAINS, ENTRIES, TTL_S, behind_changed_files, fill, put_answers, put_blocks, read, rows_of

KINDS = (*AT_REST, *LIVE, "killed")
NUM_FAULTS = 400 if IS_NIGHTLY else 12  # of each kind


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory to copy; making one anew for each fault would take most of the time."""
    folder = tmp_path_factory.mktemp("healthy") / "data"
    store = Store.open(folder, StoreLimits(0, 1 << 24), clock=Clock())
    assert all(fill(store))
    assert not any(read(store).values())
    store.close()
    return folder


def limits_of(rng: random.Random) -> StoreLimits:
    return StoreLimits(
        ram_bytes=rng.choice([0, 2_000, 1 << 20]), disk_bytes=1 << 24, ttl_s=rng.choice([0, 0, TTL_S]),
        eviction=rng.choice(["lru", "lfu", "fifo", "saved_compute"]), write_queue_bytes=rng.choice([0, 0, 3_000]),
    )  # fmt: skip


def total(store: Store) -> int:
    ordinary = ("evicted_from_ram", "expired_blocks", "expired_entries")
    return sum(num for name, num in store.counters().items() if name not in ordinary) + len(store.warnings)


def repair(data_dir: Path, limits: StoreLimits, store: Store) -> None:
    """After `check --fix`, and a restart where the database itself is bad, rows and files agree and all is as new."""
    try:
        is_whole = store.check(fix=True).ok
    except StoreError:  # a page that SQLite cannot read
        is_whole = False
    if not is_whole:
        store.close()
        store = Store.open(data_dir, limits, clock=Clock())
        store.check(fix=True)
    try:
        result = store.check()
        assert result.problems == ()
        assert len(block_files(data_dir)) == result.blocks
        for _ in range(1 if not limits.write_queue_bytes else 20):  # a short queue takes a few at a time
            kept = fill(store)
            store.flush()
        assert all(kept)
        assert not any(read(store).values())
    finally:
        store.close()


def at_rest(kind: str, rng: random.Random, data_dir: Path, healthy: Path) -> Counter[str]:
    AT_REST[kind](rng, data_dir)
    lost = behind_changed_files(healthy, data_dir)
    limits = limits_of(rng)
    with pytest.MonkeyPatch.context() as patch:
        if rng.random() < 0.5:  # as if the database were too large for a look at every page
            patch.setattr(recovery, "SMALL_DATABASE_BYTES", 0)
        store = Store.open(data_dir, limits, clock=Clock())
    try:
        missed = read(store)
        assert not (kind in ALWAYS_SEEN and not total(store)), "nobody noticed"
        assert not (missed["blocks"] or missed["tails"]) or total(store), "a silent miss"
        if kind in AT_FILES:
            assert +missed == +lost, "more or less is missing than was damaged"
        elif kind in MOST_LOST and not store.warnings:
            assert missed.total() <= MOST_LOST[kind], "more is missing than was damaged"
        assert not (kind == "change_row" and missed["marks"] and not store.warnings), "a mark is lost with one row"
        read(store)
        if rng.random() < 0.3:
            store.close()
            squeeze(data_dir, limits)
            store = Store.open(data_dir, limits, clock=Clock())
        repair(data_dir, limits, store)
    finally:
        store.close()
    return missed


def squeeze(data_dir: Path, limits: StoreLimits) -> None:
    """Open it with hardly any room: choosing what leaves reads what no checksum covers."""
    store = Store.open(data_dir, replace(limits, disk_bytes=4_000, user_quota_bytes=2_500), clock=Clock())
    try:
        store.evict()
        fill(store)
        store.flush()
        read(store)
    finally:
        store.close()


def live(kind: str, rng: random.Random, data_dir: Path, healthy: Path) -> Counter[str]:
    machine, clock, limits = Machine(), Clock(), limits_of(rng)
    store = Store.open(data_dir, limits, clock=clock, files=machine)
    try:
        if rng.random() < 0.5:
            read(store)  # so that RAM has it
        with LIVE[kind](rng, store, machine, clock):
            missed = read(store)
            if limits.ttl_s and clock.now_s > 1_000_100 + limits.ttl_s:
                expired = ENTRIES[entry(3).id]  # like its prompt's KV it is not pinned
                assert not store.find_exact(expired.scope, expired.request_key)
                assert not store.load_prefix(CHAINS[1][1])
            fill(store)
            store.put_block(chain(1, start=9000)[0], span(seed=9), ALICE)
            store.put_entry(entry(90, scope="elsewhere"))
            store.touch_entry(entry(1).id)
            store.evict()
            read(store)
            for act in (lambda: store.delete_entries([entry(90).id]), store.check, lambda: store.clear(namespace="x")):
                try:
                    act()
                except StoreError:
                    missed["refused"] += 1
            missed["refused"] += not clear_of_files(store, data_dir, told=kind != "rows_under_way")
        store.flush()
        read(store)
        repair(data_dir, limits, store)
    finally:
        store.close()
    return missed


def clear_of_files(store: Store, data_dir: Path, *, told: bool) -> bool:
    """Clear a user; False when the store says that something stayed. Else nothing did, if that is what it is `told`."""
    try:
        store.clear(user=BOB.user)
    except StoreError:
        return False
    names = {path.name.split(".")[0] for path in block_files(data_dir)}
    assert not told or not names & {key.hash for owner, keys in CHAINS if owner == BOB for key in keys}
    return True


def act(data_dir: Path, machine: Machine, limits: StoreLimits, order: Sequence[int]) -> list[range]:
    """Write, evict and delete until the machine dies or nothing is left to do; which steps were whose."""
    steps: list[range] = []
    store = Store.open(data_dir, limits, clock=Clock(), files=machine)
    machine.num_steps = 0  # of a start there is nothing to lose
    machine.watch(store._db.connection)
    acts = [lambda: put_blocks(store), lambda: put_answers(store), lambda: store.clear(user=ALICE.user), store.evict]
    try:
        for number in order:
            first = machine.num_steps + 1
            acts[number]()
            steps.append(range(first, machine.num_steps + 1))
    except Killed:
        pass
    finally:
        store.close()
    return steps


def killed(kind: str, rng: random.Random, data_dir: Path, healthy: Path) -> Counter[str]:
    """The process dies at one of the steps of writing, evicting and deleting; what was committed before is there.

    What it leaves is a copy from the moment of its death, with SQLite's log as it was.
    """
    # Without a queue: it is this thread that dies. A process that is killed with one is in test_crash.py.
    limits = replace(limits_of(rng), write_queue_bytes=0, disk_bytes=rng.choice([6_000, 1 << 24]))
    order = rng.sample(range(4), 4)
    steps = [taken for taken in act(data_dir / "lived", Machine(), limits, order) if taken]
    machine = Machine()
    machine.dies_at, machine.dies_after = rng.choice(rng.choice(steps)), rng.random() < 0.5
    machine.part = rng.random()
    left, committed = data_dir / "left", {}

    def leave() -> None:
        committed.update(rows_of(data_dir / "killed", TABLES))
        shutil.copytree(data_dir / "killed", left)

    machine.at_death = leave
    act(data_dir / "killed", machine, limits, order)
    assert machine.is_dead
    limits = replace(limits, disk_bytes=1 << 24)
    again = Store.open(left, limits, clock=Clock())
    try:
        assert again.warnings == []
        assert rows_of(left, TABLES) == committed
        result = again.check()
        assert result.problems == ()
        assert len(block_files(left)) == result.blocks
        missed = read(again)
        hashes = {row.hash for row in again._blocks.all()}
        for _, keys in CHAINS:
            for key in keys:
                assert (key.hash in hashes) == (len(again.load_prefix([key])) == 1)
        repair(left, limits, again)
    finally:
        again.close()
    return missed


def run(kind: str, number: int, healthy: Path, data_dir: Path) -> Counter[str]:
    rng = random.Random(f"{kind} {number}")
    shutil.copytree(healthy, data_dir, symlinks=True)
    try:
        return (at_rest if kind in AT_REST else live if kind in LIVE else killed)(kind, rng, data_dir, healthy)
    except BaseException as error:
        error.add_note(f"fault {kind} {number}")
        raise
    finally:
        shutil.rmtree(data_dir)


def fails(act: Callable[[], object]) -> bool:
    try:
        act()
    except sqlite3.Error:
        return True
    return False


# That something did happen, while it lasts: else a campaign of this kind would pass whatever the store does.
HAPPENS: dict[str, Callable[[Store, Path], bool]] = {
    "refusing": lambda store, _: bool(
        # One of each kind of call, of which some fail.
        [store.put_block(chain(1, start=9000)[0], span(), ALICE), store.load_prefix(CHAINS[1][1])]
        and store._tiers.delete(store._blocks.all())
        and total(store)
    ),
    "read_only_database": lambda store, _: not store.put_entry(entry(90)),
    "full_database": lambda store, _: not all(store.put_entry(entry(90 + n, answer="x" * 9000)) for n in range(9)),
    "locked_database": lambda store, _: not store.put_entry(entry(90)),
    "lost_table": lambda store, _: any(fails(lambda t=name: store._db.rows(f"SELECT * FROM {t}")) for name in TABLES),
    "clock_jump": lambda store, _: store._clock() != Clock()(),
    "damage_under_way": lambda store, healthy: bool(+behind_changed_files(healthy, store._folder.path)),
    "rows_under_way": lambda store, healthy: rows_of(store._folder.path, TABLES) != rows_of(healthy, TABLES),
}


@pytest.mark.parametrize("kind", LIVE)
def test_what_is_to_happen_happens(kind: str, healthy: Path, tmp_path: Path) -> None:
    for number in range(5):
        data_dir = tmp_path / str(number)
        shutil.copytree(healthy, data_dir)
        machine, clock = Machine(), Clock()
        store = Store.open(data_dir, StoreLimits(0, 1 << 24), clock=clock, files=machine)
        try:
            with LIVE[kind](random.Random(f"{kind} {number}"), store, machine, clock):
                assert HAPPENS[kind](store, healthy), f"{kind} {number}"
            assert kind in ("damage_under_way", "rows_under_way") or store.put_entry(entry(91))
        finally:
            store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_campaign(kind: str, healthy: Path, tmp_path: Path) -> None:
    missed: Counter[str] = Counter()
    num = 3 * NUM_FAULTS if kind == "killed" else NUM_FAULTS  # it has the most moments to choose from
    for number in range(num):
        missed += run(kind, number, healthy, tmp_path / "data")
    print(f"{kind}: {num} faults, nothing wrong served, missed {dict(missed)}")
