"""Whatever happens to files, rows or the machine: what is served is what was stored, and the rest is a counted miss."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from semcache.errors import StoreError
from semcache.store import migrations
from semcache.store.store import Store, StoreLimits

from .faults import ALWAYS_SEEN, AT_REST, LIVE, Killed, Machine
from .samples import ALICE, Clock, block_files, chain, entry, span
from .world import CHAINS, TTL_S, fill, put_answers, put_blocks, read

KINDS = (*AT_REST, *LIVE, "killed")
FEW, MANY = 12, 400  # of each kind: 312 and 10,400 faults


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


def at_rest(kind: str, rng: random.Random, data_dir: Path) -> Counter[str]:
    AT_REST[kind](rng, data_dir)
    limits = limits_of(rng)
    with pytest.MonkeyPatch.context() as patch:
        if rng.random() < 0.5:  # as if the database were too large for a look at every page
            patch.setattr(migrations, "SMALL_DATABASE_BYTES", 0)
        store = Store.open(data_dir, limits, clock=Clock())
    try:
        missed = read(store)
        assert not (kind in ALWAYS_SEEN and not total(store)), "nobody noticed"
        assert not (missed["blocks"] or missed["tails"]) or total(store), "a silent miss"
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


def live(kind: str, rng: random.Random, data_dir: Path) -> Counter[str]:
    machine, clock, limits = Machine(), Clock(), limits_of(rng)
    store = Store.open(data_dir, limits, clock=clock, files=machine)
    try:
        if rng.random() < 0.5:
            read(store)  # so that RAM has it
        with LIVE[kind](rng, store, machine, clock):
            missed = read(store)
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
        store.flush()
        read(store)
        repair(data_dir, limits, store)
    finally:
        store.close()
    return missed


def killed(kind: str, rng: random.Random, data_dir: Path) -> Counter[str]:
    """The process dies at a random step of writing, evicting or deleting; what was acknowledged before is there."""
    shutil.rmtree(data_dir)
    # Without a queue: it is this thread that dies. A process that is killed with one is in test_crash.py.
    machine, limits = Machine(), replace(limits_of(rng), write_queue_bytes=0)
    store = Store.open(data_dir, limits, clock=Clock(), files=machine)
    machine.left, machine.dies_after, machine.part = rng.randint(1, 24), rng.random() < 0.5, rng.random()
    committed: list[str] = []
    try:
        for act in rng.sample(
            [lambda: put_blocks(store), lambda: put_answers(store), lambda: store.clear(user=ALICE.user)], 3
        ):
            act()
    except Killed:
        pass
    finally:
        committed = [row.hash for row in store._blocks.all()]
        store._tiers.disk.close()
        store._db.close()
        store._folder.release("killed")
    again = Store.open(data_dir, StoreLimits(0, 1 << 24), clock=Clock())
    try:
        assert again.warnings == []
        result = again.check()
        assert result.problems == ()
        assert len(block_files(data_dir)) == result.blocks == len(committed)
        missed = read(again)
        for _, keys in CHAINS:
            for key in keys:
                assert (key.hash in committed) == (len(again.load_prefix([key])) == 1)
        repair(data_dir, limits, again)
    finally:
        again.close()
    return missed


def run(kind: str, number: int, healthy: Path, data_dir: Path) -> Counter[str]:
    rng = random.Random(f"{kind} {number}")
    shutil.copytree(healthy, data_dir, symlinks=True)
    try:
        return (at_rest if kind in AT_REST else live if kind in LIVE else killed)(kind, rng, data_dir)
    except BaseException as error:
        error.add_note(f"fault {kind} {number}")
        raise
    finally:
        shutil.rmtree(data_dir)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_faults_of_each_kind(kind: str, healthy: Path, tmp_path: Path) -> None:
    for number in range(FEW):
        run(kind, number, healthy, tmp_path / "data")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_campaign(kind: str, healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missed: Counter[str] = Counter()
    for number in range(MANY):
        missed += run(kind, number, healthy, tmp_path / "data")
    with capsys.disabled():
        print(f"\n{kind}: {MANY} faults, nothing wrong served, missed {dict(missed)}", end="")
