"""The store against two dictionaries, through any sequence of writes, reads, deletions and restarts."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from semcache.errors import PinLimitError
from semcache.store.blocks import BlockKey, Owner
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

from .samples import ALICE, BOB, Clock, alias, block_files, chain, entry, same, span, vector

# A block of other tokens with the name of Alice's second one: it may take that place, it is never taken for it.
TWIN = replace(chain(3)[1], token_ids=(9, 9, 9, 9))
CHAINS = {ALICE: chain(3), BOB: chain(3, start=500)}
OWNERS = st.sampled_from([ALICE, BOB])
OWNER_NUMBERS = {ALICE.user: 0, BOB.user: 1}
ALIAS_KEYS = ("a0", "a1", "r0")  # the last may be a request of its own
Place = tuple[str, str]  # scope, request key


class AgainstDictionaries(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.blocks: dict[str, tuple[BlockKey, int]] = {}  # hash to what has the name, and its seed
        self.entries: dict[Place, int] = {}  # to number
        self.answers: dict[int, str] = {}
        self.aliases: dict[Place, int] = {}  # to number of entry
        self.serial = 0
        self.open(StoreLimits(1 << 20, 1 << 24))

    def open(self, limits: StoreLimits) -> None:
        self.store = Store.open(Path(self.folder.name) / "data", limits, clock=self.clock)

    @rule(owner=OWNERS, at=st.integers(0, 2))
    def put_block(self, owner: Owner, at: int) -> None:
        self.put(CHAINS[owner][at], owner)

    @rule()
    def put_twin(self) -> None:
        self.put(TWIN, ALICE)

    def put(self, key: BlockKey, owner: Owner) -> None:
        self.serial += 1
        assert self.store.put_block(key, span(seed=self.serial), owner)
        if self.blocks.get(key.hash, (None, 0))[0] != key:
            self.blocks[key.hash] = key, self.serial

    @rule(owner=OWNERS, request=st.integers(0, 2), answer=st.sampled_from(["yes", "no"]))
    def put_entry(self, owner: Owner, request: int, answer: str) -> None:
        self.serial += 1
        self.clock.now_s += 1
        made = entry(self.serial, scope=owner.scope, user=owner.user, request_key=f"r{request}", answer=answer)
        assert self.store.put_entry(made)
        place = (owner.scope, made.request_key)
        self.aliases.pop(place, None)
        old = self.entries.get(place)
        if old is not None and self.answers[old] == answer:
            self.aliases = {at: self.serial if number == old else number for at, number in self.aliases.items()}
        self.drop_aliases_of({old})
        self.entries[place] = self.serial
        self.answers[self.serial] = answer

    def drop_aliases_of(self, numbers: set[int | None]) -> None:
        self.aliases = {at: number for at, number in self.aliases.items() if number not in numbers}

    @rule(owner=OWNERS, key=st.sampled_from(ALIAS_KEYS), request=st.integers(0, 2))
    def put_alias(self, owner: Owner, key: str, request: int) -> None:
        number = self.entries.get((owner.scope, f"r{request}"))
        made = alias(number or 0, key, scope=owner.scope, user=owner.user)
        assert self.store.aliases.put(made) == (number is not None)
        if number is not None:
            self.aliases[owner.scope, key] = number

    @rule(owner=OWNERS, key=st.sampled_from(ALIAS_KEYS))
    def delete_alias(self, owner: Owner, key: str) -> None:
        gone = self.aliases.pop((owner.scope, key), None)
        assert self.store.aliases.delete(owner.scope, key) == (gone is not None)

    @rule(owner=OWNERS, request=st.integers(0, 2))
    def delete_entry(self, owner: Owner, request: int) -> None:
        number = self.entries.pop((owner.scope, f"r{request}"), None)
        assert self.store.delete_entries([entry(number or 0).id]) == (number is not None)
        self.drop_aliases_of({number})

    @rule(owner=OWNERS)
    def clear(self, owner: Owner) -> None:
        mine = [place for place in self.entries if place[0] == owner.scope]
        hashes = [key.hash for key in CHAINS[owner] if key.hash in self.blocks]
        assert self.store.clear(scopes=[owner.scope]) == (len(mine), len(hashes))
        for place in mine:
            self.drop_aliases_of({self.entries.pop(place)})
        for hash_ in hashes:
            del self.blocks[hash_]

    @rule(ram=st.sampled_from([0, 1500, 1 << 20]), queue=st.sampled_from([0, 1 << 20]))
    def restart(self, ram: int, queue: int) -> None:
        self.store.close()
        self.open(StoreLimits(ram, 1 << 24, write_queue_bytes=queue))
        assert self.store.warnings == []

    @rule(owner=OWNERS, query=st.integers(0, 9))
    def nearest(self, owner: Owner, query: int) -> None:
        found = [e.id for e, _ in self.store.nearest(owner.scope, vector(query), 10, None)]
        assert sorted(found) == sorted(entry(n).id for (scope, _), n in self.entries.items() if scope == owner.scope)

    @invariant()
    def reads_agree(self) -> None:
        self.store.flush()  # until then a block and its twin may both be there, each for its own tokens
        for keys in (*CHAINS.values(), [TWIN]):
            run = []
            for key in keys:
                here, seed = self.blocks.get(key.hash, (None, 0))
                if here != key:
                    break
                run.append(seed)
            loaded = self.store.load_prefix(keys)
            assert len(loaded) == len(run)
            assert all(same(item, span(seed=seed)) for item, seed in zip(loaded, run, strict=True))
            absent = [key for key in keys if self.blocks.get(key.hash, (None, 0))[0] != key]
            assert self.store.missing(keys) == absent
        for owner in CHAINS:
            for request in range(3):
                number = self.entries.get((owner.scope, f"r{request}"))
                found = [e.id for e in self.store.find_exact(owner.scope, f"r{request}")]
                assert found == ([] if number is None else [entry(number).id])
            for key in ALIAS_KEYS:
                number = self.aliases.get((owner.scope, key))
                by_alias = self.store.aliases.find(owner.scope, key)
                assert (by_alias and by_alias.id) == (None if number is None else entry(number).id)
        assert len(block_files(Path(self.folder.name) / "data")) == len(self.blocks)

    def teardown(self) -> None:
        assert self.store.check().problems == ()
        self.store.close()
        self.folder.cleanup()


BUDGET, QUOTA, TTL_S = 14_000, 9_000, 50
LENGTHS = (1, 2, 3)


class PinnedUnderPressure(RuleBasedStateMachine):
    """Two users, more prompts than there is room for, and pins: these stay whole, and the budgets hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.serial = 0
        self.pinned: dict[str, tuple[Owner, list[BlockKey]]] = {}  # by entry, with what of its prompt was seen stored
        self.known: list[tuple[str, Owner, list[BlockKey]]] = []
        self.open()

    def open(self) -> None:
        limits = StoreLimits(2_000, BUDGET, user_quota_bytes=QUOTA, ttl_s=TTL_S)
        self.store = Store.open(Path(self.folder.name) / "data", limits, clock=self.clock)

    @rule(owner=OWNERS, prompt=st.integers(0, 9), length=st.sampled_from(LENGTHS))
    def answer(self, owner: Owner, prompt: int, length: int) -> None:
        """KV and a new answer; asked again, the answer takes the place of the old one and of its pin."""
        self.serial += 1
        self.clock.now_s += 1
        keys = chain(3, start=1000 * prompt + 100_000 * OWNER_NUMBERS[owner.user])[:length]
        key = f"r{prompt}-{length}"
        made = entry(
            self.serial, scope=owner.scope, user=owner.user, request_key=key, created_at=self.clock.now_s,
            answer="x" * 100 * length,
        )  # fmt: skip
        old = [found.id for found in self.store.find_exact(owner.scope, key)]
        assert self.store.put_entry(made, [key.hash for key in keys])
        for old_id in old:
            if old_id in self.pinned:
                self.pinned[made.id] = self.pinned.pop(old_id)
        self.known.append((made.id, owner, keys))
        for number, block in enumerate(keys):
            self.store.put_block(block, span(seed=number), owner)
        self.look()

    @rule(owner=OWNERS)
    def press(self, owner: Owner) -> None:
        """More younger KV than a quota has room for."""
        for _ in range(16):
            self.serial += 1
            self.clock.now_s += 1
            self.store.put_block(chain(1, start=1_000_000 + 10 * self.serial)[0], span(), owner)

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(self.known), max_size=12)) if self.known else []
        for entry_id, owner, _ in some:
            try:
                if self.store.pin_entry(entry_id):
                    self.pinned[entry_id] = owner, []
            except PinLimitError:
                assert not any(found.pinned for found in self.store.list_entries(match=entry_id))
        self.look()

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.pinned:
            entry_id = data.draw(st.sampled_from(sorted(self.pinned)))
            assert self.store.pin_entry(entry_id, pinned=False)
            del self.pinned[entry_id]

    @rule(seconds=st.integers(1, TTL_S))
    def wait(self, seconds: int) -> None:
        self.clock.now_s += seconds
        self.store.evict()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()
        assert self.store.warnings == []

    def look(self) -> None:
        """What of a pinned prompt is there now must stay."""
        prompts = {entry_id: keys for entry_id, _, keys in self.known}
        for entry_id, (owner, _) in self.pinned.items():
            missing = self.store.missing(prompts[entry_id])
            self.pinned[entry_id] = owner, [key for key in prompts[entry_id] if key not in missing]

    @invariant()
    def pins_are_whole(self) -> None:
        here = {found.id for found in self.store.list_entries(limit=-1) if found.pinned}
        assert here == set(self.pinned)
        for _, keys in self.pinned.values():
            assert self.store.missing(keys) == []

    @invariant()
    def budgets_hold(self) -> None:
        assert self.store.tier_status()["disk"].used_bytes <= BUDGET
        assert all(user.disk_bytes <= QUOTA for user in self.store.usage().users)

    def teardown(self) -> None:
        assert self.store.check().problems == ()
        self.store.close()
        self.folder.cleanup()


TestPinnedUnderPressure = PinnedUnderPressure.TestCase
TestPinnedUnderPressure.settings = settings(deadline=None, max_examples=30, stateful_step_count=40)

TestAgainstDictionaries = AgainstDictionaries.TestCase
TestAgainstDictionaries.settings = settings(deadline=None, max_examples=20, stateful_step_count=16)
