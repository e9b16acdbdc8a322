"""A pin holds an answer and its prompt's KV against budgets, quotas and time, and never holds too much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semcache.errors import PinLimitError, StoreError
from semcache.store.blocks import BlockKey
from semcache.store.entries import Entry
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .conftest import OpenStore
from .samples import ALICE, BOB, Clock, chain, entry, put_chain, span, tail, tail_of
from .test_check import kinds
from .test_entries import edit

BLOCK_BYTES = 800  # a little more than a file of `samples.span`
PROMPT = chain(2)
RECORD = tail_of(PROMPT)
NAMES = [key.hash for key in (*PROMPT, RECORD)]
ANSWER = entry(1)


def put_kv(store: Store) -> None:
    put_chain(store, PROMPT)
    assert store.put_tail(RECORD, tail(), ALICE)


def put_prompt(store: Store, *, pinned: bool = True) -> None:
    put_kv(store)
    assert store.put_entry(ANSWER, NAMES)
    assert store.pin_entry(ANSWER.id, pinned=pinned)


def press(store: Store, clock: Clock, num: int = 20) -> None:
    """Younger prompts and answers, more than there is room for."""
    for number in range(num):
        clock.now_s += 1
        put_chain(store, chain(3, start=1000 + 100 * number))
        store.put_entry(entry(100 + number, answer="x" * 600, created_at=clock.now_s))


def is_whole(store: Store) -> bool:
    return len(store.load_prefix(PROMPT)) == 2 and store.load_prompt([], RECORD).record is not None


@pytest.mark.parametrize("eviction", ["lru", "lfu", "fifo", "saved_compute"])
@pytest.mark.parametrize("quota", [0, 16 * BLOCK_BYTES])
def test_no_budget_takes_what_is_pinned(open_store: OpenStore, clock: Clock, eviction: str, quota: int) -> None:
    limit = 16 * BLOCK_BYTES if not quota else 1 << 20
    store = open_store(StoreLimits(0, limit, user_quota_bytes=quota, eviction=eviction))
    put_prompt(store)
    press(store, clock)
    assert is_whole(store)
    assert store.get_entry(ANSWER.id) is not None
    assert store.tier_status()["disk"].used_bytes <= (quota or limit)
    assert store.counters()["evicted_blocks"] > 0
    assert store.pin_entry(ANSWER.id, pinned=False)
    press(store, clock)
    if eviction in ("lru", "fifo"):  # the others value the use that the look above was
        assert not is_whole(store)
    assert store.check().problems == ()


def test_what_is_pinned_does_not_expire(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(1 << 20, 1 << 20, ttl_s=100))
    put_prompt(store)
    put_chain(store, chain(1, start=500))
    clock.now_s += 1000
    assert store.evict() == 1
    assert [found.id for found in store.find_exact(ALICE.scope, ANSWER.request_key)] == [ANSWER.id]
    assert store.missing([*PROMPT, RECORD]) == []
    assert is_whole(store)
    assert store.pin_entry(ANSWER.id, pinned=False)
    assert store.find_exact(ALICE.scope, ANSWER.request_key) == []
    assert store.missing(PROMPT) == PROMPT
    assert store.evict() == 4


def test_kv_that_comes_after_the_pin_is_held_too(open_store: OpenStore, clock: Clock) -> None:
    limits = StoreLimits(0, 16 * BLOCK_BYTES)
    store = open_store(limits)
    assert store.put_entry(ANSWER, NAMES)
    assert store.pin_entry(ANSWER.id)
    stored = store.prompt_stored(ANSWER.id)
    assert stored is not None
    assert (stored.num_blocks, stored.num_stored, stored.size_bytes) == (3, 0, 0)
    store = open_store(limits)
    put_kv(store)
    press(store, clock)
    assert is_whole(store)


def test_a_refreshed_answer_is_pinned_with_its_own_prompt(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 16 * BLOCK_BYTES))
    put_prompt(store)
    other = chain(2, start=500)
    put_chain(store, other)
    newer = entry(2, request_key=ANSWER.request_key)
    assert store.put_entry(newer, [key.hash for key in other])
    press(store, clock)
    assert store.get_entry(newer.id) is not None
    assert len(store.load_prefix(other)) == 2
    assert store.load_prefix(PROMPT) == []


def test_removing_an_entry_ends_its_pin(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 16 * BLOCK_BYTES))
    put_prompt(store)
    assert store.delete_entries([ANSWER.id]) == 1
    assert store.prompt_stored(ANSWER.id) is None
    press(store, clock)
    assert not is_whole(store)


def test_clear_keeps_what_is_pinned_where_it_is_told_to(store: Store) -> None:
    put_prompt(store)
    put_chain(store, chain(2, start=500))
    store.put_entry(entry(2))
    assert store.num_pinned(user=ALICE.user) == 1
    assert store.clear(user=ALICE.user, keep_pinned=True) == (1, 2)
    assert is_whole(store)
    assert [found.id for found in store.list_entries()] == [ANSWER.id]
    assert (store.num_pinned(user=ALICE.user), store.num_pinned(user=BOB.user)) == (1, 0)
    assert store.clear(user=ALICE.user) == (1, 3)
    assert store.num_pinned() == 0
    assert store.check().problems == ()


def test_clear_waits_for_pinned_kv_that_is_still_to_be_written(open_store: OpenStore) -> None:
    store = open_store(StoreLimits(1 << 20, 1 << 24, write_queue_bytes=1 << 20))
    assert store.put_entry(ANSWER, NAMES)
    assert store.pin_entry(ANSWER.id)
    put_kv(store)
    assert store.clear(keep_pinned=True) == (0, 0)
    assert is_whole(store)


# How much


def prompts(num: int) -> list[tuple[Entry, list[BlockKey]]]:
    return [(entry(number), chain(2, start=100 * number)) for number in range(num)]


def pin_until_refused(store: Store, items: list[tuple[Entry, list[BlockKey]]]) -> tuple[int, str]:
    for number, (item, keys) in enumerate(items):
        put_chain(store, keys)
        assert store.put_entry(item, [key.hash for key in keys])
        try:
            assert store.pin_entry(item.id)
        except PinLimitError as refusal:
            assert not store.list_entries(match=item.id)[0].pinned
            return number, refusal.message
    raise AssertionError("never refused")


def test_pins_hold_at_most_half_of_the_disk(open_store: OpenStore) -> None:
    limit = 24 * BLOCK_BYTES
    store = open_store(StoreLimits(0, limit))
    items = prompts(12)
    num, message = pin_until_refused(store, items)
    assert 2 <= num <= 6
    assert "\n" not in message
    assert f"of the {limit:,} bytes of the disk tier" in message
    assert "cache.disk_bytes" in message
    assert store.pin_entry(items[0][0].id)  # it is already
    assert store.pin_entry(items[0][0].id, pinned=False)
    assert store.pin_entry(items[num][0].id)


def test_pins_hold_at_most_half_of_a_quota(open_store: OpenStore) -> None:
    store = open_store(StoreLimits(0, 1 << 20, user_quota_bytes=24 * BLOCK_BYTES))
    num, message = pin_until_refused(store, prompts(12))
    assert 2 <= num <= 6
    assert f"the quota of {ALICE.user}" in message
    theirs = chain(1, start=5000)
    put_chain(store, theirs, BOB)
    assert store.put_entry(entry(90, scope=BOB.scope, user=BOB.user), [theirs[0].hash])
    assert store.pin_entry(entry(90).id)


def test_pinned_answers_beyond_their_share_leave_less_to_everything_else(open_store: OpenStore, clock: Clock) -> None:
    limit = 40_000
    store = open_store(StoreLimits(0, limit))
    for number in range(6):
        assert store.put_entry(entry(number, answer="x" * 2000))
        assert store.pin_entry(entry(number).id)
    press(store, clock, num=30)
    assert store.tier_status()["disk"].used_bytes <= limit
    assert store.num_pinned() == 6


def test_a_block_of_two_pinned_prompts_counts_once_and_stays_with_either(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 20 * BLOCK_BYTES))
    keys = chain(4)
    put_chain(store, keys)
    for number in range(4):
        assert store.put_entry(entry(number), [key.hash for key in keys])
        assert store.pin_entry(entry(number).id)
    for number in range(3):
        assert store.pin_entry(entry(number).id, pinned=False)
    press(store, clock)
    assert len(store.load_prefix(keys)) == 4


def test_kv_that_is_to_come_counts_as_much_as_its_like(open_store: OpenStore) -> None:
    store = open_store(StoreLimits(0, 24 * BLOCK_BYTES))
    assert store.put_block(chain(1)[0], span(), ALICE)
    evicted = chain(24, start=500)
    assert store.put_entry(ANSWER, [key.hash for key in evicted])
    with pytest.raises(PinLimitError):
        store.pin_entry(ANSWER.id)


def test_a_smaller_budget_is_warned_of_and_takes_no_pin(open_store: OpenStore, clock: Clock) -> None:
    store = open_store()
    put_prompt(store)
    assert store.warnings == []
    store = open_store(StoreLimits(0, 4 * BLOCK_BYTES, user_quota_bytes=3 * BLOCK_BYTES))
    assert len(store.warnings) == 1
    assert "pinned answers hold more than 50%" in store.warnings[0]
    press(store, clock, num=3)
    assert is_whole(store)
    assert store.pin_entry(ANSWER.id)


# What can be wrong


def test_there_is_nothing_to_pin(store: Store) -> None:
    assert not store.pin_entry("e_none")
    assert not store.pin_entry("e_none", pinned=False)
    assert store.prompt_stored("e_none") is None


def test_an_entry_without_a_note_is_pinned_alone(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(StoreLimits(0, 16 * BLOCK_BYTES))
    assert store.put_entry(ANSWER)
    assert store.pin_entry(ANSWER.id)
    assert store.prompt_stored(ANSWER.id) is None
    press(store, clock)
    assert store.get_entry(ANSWER.id) is not None


@pytest.mark.parametrize("damage", ["[", "{}", '["x"]', "[null, 3]", b"\xff", json.dumps([["a"]])])
def test_a_damaged_note_holds_nothing_and_breaks_nothing(
    open_store: OpenStore, data_dir: Path, clock: Clock, damage: object
) -> None:
    store = open_store(StoreLimits(0, 16 * BLOCK_BYTES, ttl_s=10_000))
    put_prompt(store)
    edit(data_dir, "UPDATE prompt_blocks SET hashes = ?", damage)
    press(store, clock)
    assert store.get_entry(ANSWER.id) is not None
    assert not is_whole(store)
    assert store.prompt_stored(ANSWER.id) is None
    assert kinds(store, fix=True) == [("damaged_pin", ANSWER.id)]
    assert kinds(store) == []


def test_a_note_without_an_entry_is_removed(store: Store, data_dir: Path) -> None:
    put_prompt(store)
    edit(data_dir, "DELETE FROM entries")  # this connection enforces no foreign keys
    assert kinds(store, fix=True) == [("orphan_pin", ANSWER.id)]
    assert kinds(store) == []


def test_a_pin_that_was_not_written_is_no_pin(store: Store) -> None:
    put_prompt(store, pinned=False)
    store.close()
    with pytest.raises(StoreError, match="could not change the pin"):
        store.pin_entry(ANSWER.id)
