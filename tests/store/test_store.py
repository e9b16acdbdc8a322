"""The front door: isolation, ownership, budgets, and what survives a restart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from semcache.errors import StoreError
from semcache.store import blocks
from semcache.store.blocks import block_chain
from semcache.store.limits import MOST_BYTES, StoreLimits
from semcache.store.store import Store
from semcache.store.vectors import Partition

from .conftest import OpenStore
from .samples import (
    ALICE,
    BLOCK_TOKENS,
    BOB,
    PLENTY,
    Clock,
    alias,
    block_files,
    chain,
    decision,
    entry,
    evidence,
    file_bytes,
    put_chain,
    span,
    usage_record,
    vector,
)

BLOCK_BYTES = len(file_bytes(span()))


def test_another_scope_sees_neither_answers_nor_blocks(store: Store) -> None:
    store.put_entry(entry(1))
    put_chain(store, chain(2))
    assert store.find_exact(BOB.scope, "req1") == []
    assert store.nearest(BOB.scope, vector(1), 5, None) == []
    assert store.list_entries(scopes=[BOB.scope]) == []
    theirs = block_chain("cd" * 32, range(2 * BLOCK_TOKENS), BLOCK_TOKENS)
    assert store.load_prefix(theirs) == []
    assert store.missing(theirs) == theirs
    assert store.clear(scopes=[BOB.scope]) == (0, 0)


def test_neighbours_stay_within_their_partition(store: Store) -> None:
    for number, changes in enumerate(({}, {"fingerprint": "fp2"}, {"context_key": "c2"}, {"params_key": "p2"})):
        store.put_entry(entry(number, **changes))
    here = Partition("fp1", "ctx", "par", "minilm")
    assert [e.id for e, _ in store.nearest(ALICE.scope, vector(3), 9, here)] == [entry(0).id]
    assert len(store.nearest(ALICE.scope, vector(3), 9, None)) == 4
    best, score = store.nearest(ALICE.scope, vector(3), 1, None)[0]
    assert best.id == entry(3).id
    assert score == pytest.approx(1.0, abs=1e-6)
    assert store.nearest(ALICE.scope, vector(3), 9, here._replace(embedder="other")) == []


def test_deleted_entries_leave_the_index_and_k_are_still_found(store: Store) -> None:
    for number in range(6):
        store.put_entry(entry(number))
    # Behind the index's back, as a damaged row would be.
    store._entries.delete(store._entries.numbers("id = ?", (entry(0).id,)), "1", ())
    found = store.nearest(ALICE.scope, vector(0), 5, None)
    assert {e.id for e, _ in found} == {entry(number).id for number in range(1, 6)}
    assert store.delete_entries([entry(1).id, "e_none"]) == 1
    assert len(store.nearest(ALICE.scope, vector(0), 9, None)) == 4


def test_neighbours_and_the_donor_of_another_partition_come_together(store: Store) -> None:
    for number, changes in enumerate(({}, {}, {"fingerprint": "fp2"}, {"embedder": "other"})):
        store.put_entry(entry(number, **changes))
    here = Partition("fp1", "ctx", "par", "minilm")
    near, donor = store.nearest_and_donor(ALICE.scope, vector(2), 5, here)
    assert {e.id for e, _ in near} == {entry(0).id, entry(1).id}
    assert donor is not None
    assert (donor[0].id, round(donor[1], 5)) == (entry(2).id, 1.0)
    # Behind the index's back, as a damaged row would be.
    store._entries.delete(store._entries.numbers("id IN (?, ?)", (entry(2).id, entry(0).id)), "1", ())
    near, donor = store.nearest_and_donor(ALICE.scope, vector(2), 5, here)
    assert [e.id for e, _ in near] == [entry(1).id]
    assert donor is not None
    assert donor[0].id == entry(1).id
    assert store.nearest_and_donor(BOB.scope, vector(2), 5, here) == ([], None)


def test_an_automatic_disk_tier_is_as_large_after_a_restart(
    open_store: OpenStore, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_bytes = 100_000

    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=disk_bytes - sum(path.stat().st_size for path in block_files(folder)))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    store = open_store(StoreLimits(0, 0))
    assert store.limits.disk_bytes == store.tier_status()["disk"].limit_bytes == disk_bytes // 4
    put_chain(store, chain(8))
    assert open_store(StoreLimits(0, 0)).limits.disk_bytes == disk_bytes // 4
    assert open_store(StoreLimits(0, 7)).limits.disk_bytes == 7
    disk_bytes = 10**12
    assert open_store(StoreLimits(0, 0)).limits.disk_bytes == MOST_BYTES


def test_everything_is_usable_after_a_restart(store: Store, open_store: OpenStore) -> None:
    keys = chain(3)
    put_chain(store, keys)
    store.put_entry(entry(1))
    store.record_request(usage_record(1))
    again = open_store()
    assert again.warnings == []
    assert len(again.load_prefix(keys)) == 3
    assert again.find_exact(ALICE.scope, "req1")[0].answer == entry(1).answer
    assert again.nearest(ALICE.scope, vector(1), 1, None)[0][0].id == entry(1).id
    assert again.recent_requests()[0].id == "req_1"
    assert again.counters()["swept_files"] == 0


def test_a_second_owner_is_told_who_the_first_is(store: Store, data_dir: Path) -> None:
    code = (  # the lock alone: importing torch takes longer than the whole test
        "import sys; from pathlib import Path; from semcache.store.datadir import DataDir\n"
        "try: DataDir(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(data_dir)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StoreError")
    assert f"pid {os.getpid()}" in done.stdout
    assert "semcache daemon stop" in done.stdout
    with pytest.raises(StoreError, match="in use"):
        Store.open(data_dir, PLENTY)


def test_a_closed_store_answers_nothing_and_raises_nothing(store: Store, data_dir: Path) -> None:
    keys = chain(1)
    store.put_entry(entry(1))
    store.close()
    store.close()
    assert store.load_prefix(keys) == []
    assert store.missing(keys) == keys
    assert not store.put_block(keys[0], span(), ALICE)
    assert not store.put_entry(entry(2))
    assert store.find_exact(ALICE.scope, "req1") == []
    assert store.nearest(ALICE.scope, vector(1), 1, None) == []
    assert store.list_entries() == []
    assert store.usage().users == ()
    assert store.tier_status()["disk"].items == 0
    assert store.evict() == 0
    store.record_request(usage_record())
    assert not store.aliases.put(alias(1))
    assert store.aliases.find(ALICE.scope, "alias1") is None
    assert store.aliases.of(entry(1).id) == []
    assert not store.aliases.delete(ALICE.scope, "alias1")
    assert store.evidence.load_evidence(ALICE.scope) is None
    assert store.evidence.load_negatives(ALICE.scope) is None
    assert not store.evidence.save_evidence(ALICE.scope, "{}", [evidence(1)])
    assert not store.evidence.add_negative(ALICE.scope, "pair")
    assert (store.evidence.of_entry(entry(1).id), store.decisions.num_due()) == (None, 0)
    assert not store.decisions.record([decision(1)])
    assert not store.decisions.label("req_1", entry(1).id, True, "audit")
    assert not store.decisions.close_audit("req_1", entry(1).id)
    assert store.decisions.recent() == store.decisions.of_request("req_1") == store.decisions.due_audits(9) == []
    assert (store.decisions.wrong_hits(), store.decisions.wrong_hits_by_user()) == ((0, 0), {})
    assert block_files(data_dir) == []
    with pytest.raises(StoreError):
        store.clear()
    with pytest.raises(StoreError):
        store.check()


def test_leftovers_are_swept_at_open(store: Store, open_store: OpenStore, data_dir: Path) -> None:
    keys = chain(2)
    put_chain(store, keys)
    store.close()
    folder = block_files(data_dir)[0].parent
    (folder / f"{'0' * 64}.safetensors.123-4.tmp").write_bytes(b"half")
    (folder / f"{'0' * 64}.safetensors").write_bytes(b"never published")
    again = open_store()
    assert again.counters()["swept_files"] == 2
    assert len(block_files(data_dir)) == 2
    assert len(again.load_prefix(keys)) == 2


@pytest.mark.parametrize("eviction", ["lru", "lfu", "fifo", "saved_compute"])
def test_the_disk_stays_within_its_bytes_and_chains_shrink_from_the_end(
    open_store: OpenStore, data_dir: Path, clock: Clock, eviction: str
) -> None:
    limit = 9 * BLOCK_BYTES
    store = open_store(StoreLimits(1 << 20, limit, eviction=eviction))
    old, young = chain(6), chain(6, start=1000)
    for keys in (old, young):
        for key in keys:
            clock.now_s += 1
            assert store.put_block(key, span(), ALICE)
            assert store.tier_status()["disk"].used_bytes <= limit
    assert sum(path.stat().st_size for path in block_files(data_dir)) == store.tier_status()["disk"].used_bytes
    kept_old, kept_young = len(store.load_prefix(old)), len(store.load_prefix(young))
    assert kept_old + kept_young == store.tier_status()["disk"].items  # no block without its parent
    assert kept_old < 6 or kept_young < 6
    assert store.counters()["evicted_blocks"] == 12 - kept_old - kept_young > 0
    if eviction != "lfu":
        assert kept_young == 6
    assert store.check().problems == ()


def test_saved_compute_keeps_what_was_dear(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(1 << 20, 10 * BLOCK_BYTES, eviction="saved_compute"))
    dear, cheap, new = chain(4), chain(4, start=1000), chain(4, start=2000)
    for keys, compute_ms in ((dear, 50.0), (cheap, 5.0), (new, 20.0)):
        clock.now_s += 1
        for key in keys:
            assert store.put_block(key, span(), ALICE, compute_ms)
    assert [len(store.load_prefix(keys)) for keys in (dear, new)] == [4, 4]
    assert len(store.load_prefix(cheap)) < 4


def test_lru_keeps_the_chain_that_is_used(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(1 << 20, 10 * BLOCK_BYTES))
    first, second, third = chain(4), chain(4, start=1000), chain(4, start=2000)
    for keys in (first, second):
        clock.now_s += 1
        put_chain(store, keys)
    clock.now_s += 1
    store.load_prefix(first)
    clock.now_s += 1
    put_chain(store, third)
    assert len(store.load_prefix(first)) == 4
    assert len(store.load_prefix(second)) < 4


def test_answers_are_evicted_only_beyond_their_share_and_never_when_pinned(open_store: OpenStore) -> None:
    store = open_store(StoreLimits(0, 20_000))
    for number in range(40):
        store.put_entry(entry(number, pinned=number == 0))
    left = {e.id for e in store.list_entries(limit=100)}
    assert entry(0).id in left
    assert entry(39).id in left
    assert entry(1).id not in left
    assert store.counters()["evicted_entries"] == 40 - len(left)
    assert store.tier_status()["disk"].used_bytes <= 20_000
    put_chain(store, chain(30))
    assert store.tier_status()["disk"].used_bytes <= 20_000
    assert store.get_entry(entry(0).id) is not None


def test_a_quota_costs_only_its_own_user(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(1 << 20, 1 << 20, user_quota_bytes=6 * BLOCK_BYTES))
    theirs = chain(3, start=5000)
    put_chain(store, theirs, BOB)
    for number in range(10):
        clock.now_s += 1
        put_chain(store, chain(1, start=100 * number))
    used = {user.user: user.disk_bytes for user in store.usage().users}
    assert 0 < used[ALICE.user] <= 6 * BLOCK_BYTES
    assert len(store.load_prefix(theirs)) == 3
    assert len(store.load_prefix(chain(1, start=900))) == 1
    assert store.load_prefix(chain(1)) == []


def test_a_user_at_the_quota_makes_nobody_elses_rows_be_read(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 1 << 24, user_quota_bytes=6 * BLOCK_BYTES, ttl_s=10**6))
    put_chain(store, chain(3, start=5000), BOB)
    statements: list[str] = []
    store._db.connection.set_trace_callback(statements.append)
    for number in range(9):
        clock.now_s += 1
        put_chain(store, chain(2, start=100 * number))
        store.put_entry(entry(number))
    store._db.connection.set_trace_callback(None)
    assert store.counters()["evicted_blocks"] > 4
    reads = {sql for sql in statements if sql.startswith("SELECT")}
    plans = [row["detail"] for sql in reads for row in store._db.rows(f"EXPLAIN QUERY PLAN {sql}")]
    assert any("blocks_user" in plan for plan in plans)
    # Page by page is the whole table too; pins are few.
    whole = re.compile(r"SCAN (blocks|entries|aliases)\b(?!.* entries_pinned)|.*\(hash>")
    assert [plan for plan in plans if whole.match(plan)] == []


@pytest.mark.parametrize("num_rows", [1, 2, 5, 99])
def test_rows_are_read_page_by_page_and_each_once(store: Store, monkeypatch: pytest.MonkeyPatch, num_rows: int) -> None:
    monkeypatch.setattr(blocks, "PAGE_ROWS", num_rows)
    mine, theirs = chain(5), chain(2, start=500)
    put_chain(store, mine)
    put_chain(store, theirs, BOB)
    for user, keys in ((ALICE.user, mine), (BOB.user, theirs), (None, mine + theirs), ("nobody", [])):
        assert sorted(row["hash"] for row in store._blocks.uses(user)) == sorted(key.hash for key in keys)
    children = store._blocks.num_children([key.hash for key in mine])
    assert children == Counter(key.hash for key in mine[:-1])


def test_text_that_is_none_does_not_keep_a_reader_for_ever(store: Store) -> None:
    """As a damaged page may hold it; it is read as another text, and the next page starts behind that one."""
    put_chain(store, chain(3))
    for number in range(3):
        store.put_entry(entry(number))
    with store._db.transaction() as connection:
        connection.execute("UPDATE blocks SET hash = CAST(x'ffff' AS TEXT) WHERE hash = ?", (chain(3)[0].hash,))
        connection.execute("UPDATE entries SET request_key = CAST(x'ffff' AS TEXT) WHERE id = ?", (entry(0).id,))
    assert len(list(store._blocks.uses())) == len(list(store._blocks.uses(ALICE.user))) == 3
    found = store.nearest(ALICE.scope, vector(1), 9, None)
    assert {item.id for item, _ in found} == {entry(1).id, entry(2).id}


def test_a_users_oldest_leaves_leave_but_no_parent_of_anothers_block(open_store: OpenStore, clock: Clock) -> None:
    keys = chain(4)
    store = open_store(StoreLimits(0, 1 << 24, user_quota_bytes=int(3.5 * BLOCK_BYTES)))
    for key, owner in (
        (keys[0], ALICE),
        (keys[1], BOB),
        *((key, ALICE) for key in chain(1, start=700) + chain(1, start=800)),
    ):
        clock.now_s += 1
        assert store.put_block(key, span(), owner)
    clock.now_s += 1
    assert store.put_block(chain(1, start=900)[0], span(), ALICE)
    left = [at for at in (0, 700, 800, 900) if store.missing(chain(1, start=at)) == []]
    assert left == [0, 800, 900]  # the oldest is what Bob's goes on from
    assert len(store.load_prefix(keys)) == 2


@pytest.mark.parametrize("queue_bytes", [0, 5 * BLOCK_BYTES])
def test_many_threads_on_one_prefix_while_it_is_evicted(open_store: OpenStore, queue_bytes: int) -> None:
    store = open_store(StoreLimits(ram_bytes=2_000, disk_bytes=12 * BLOCK_BYTES, write_queue_bytes=queue_bytes))
    chains = [chain(4, start=1000 * number) for number in range(4)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(12):
                keys = chains[(number + turn) % len(chains)]
                for at, key in enumerate(keys):
                    store.put_block(key, span(seed=at), ALICE)
                for at, item in enumerate(store.load_prefix(keys)):
                    assert item.keys.equal(span(seed=at).keys)
                store.put_entry(entry(100 * number + turn, request_key=f"r{turn}"))
                store.nearest(ALICE.scope, vector(number), 3, None)
                if turn % 5 == number % 5:
                    store.clear(user="nobody")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    counters = store.counters()
    assert (counters["damaged_blocks"], counters["write_failures"], counters["read_failures"]) == (0, 0, 0)
    assert store.check().problems == ()


@pytest.mark.parametrize("value", ["newest", ""])
def test_an_unknown_eviction_order_is_refused(data_dir: Path, value: str) -> None:
    with pytest.raises(StoreError, match="lru, lfu, fifo"):
        Store.open(data_dir, StoreLimits(1, 1, eviction=value))
