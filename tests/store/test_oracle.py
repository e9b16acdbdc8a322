"""The store against two dictionaries, through any sequence of writes, reads, deletions and restarts."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from semcache.store.blocks import BlockKey, Owner
from semcache.store.store import Store, StoreLimits

from .samples import ALICE, BOB, Clock, alias, block_files, chain, entry, same, span, vector

# A block of other tokens with the name of Alice's second one: it may take that place, it is never taken for it.
TWIN = replace(chain(3)[1], token_ids=(9, 9, 9, 9))
CHAINS = {ALICE: chain(3), BOB: chain(3, start=500)}
OWNERS = st.sampled_from([ALICE, BOB])
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


TestAgainstDictionaries = AgainstDictionaries.TestCase
TestAgainstDictionaries.settings = settings(deadline=None, max_examples=20, stateful_step_count=16)
