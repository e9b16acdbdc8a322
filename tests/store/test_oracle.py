"""The store against two dictionaries, through any sequence of writes, reads, deletions and restarts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from semcache.store.store import Store, StoreLimits

from .samples import ALICE, BOB, Clock, block_files, chain, entry, same, span, vector

CHAINS = {ALICE: chain(3), BOB: chain(3, start=500)}
OWNERS = st.sampled_from([ALICE, BOB])


class AgainstDictionaries(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.blocks: dict[str, int] = {}  # hash to seed
        self.entries: dict[tuple[str, str], int] = {}  # scope and request key to number
        self.serial = 0
        self.open(StoreLimits(1 << 20, 1 << 24))

    def open(self, limits: StoreLimits) -> None:
        self.store = Store.open(Path(self.folder.name) / "data", limits, clock=self.clock)

    @rule(owner=OWNERS, at=st.integers(0, 2))
    def put_block(self, owner: object, at: int) -> None:
        key = CHAINS[owner][at]
        self.serial += 1
        assert self.store.put_block(key, span(seed=self.serial), owner)
        self.blocks.setdefault(key.hash, self.serial)

    @rule(owner=OWNERS, request=st.integers(0, 2))
    def put_entry(self, owner: object, request: int) -> None:
        self.serial += 1
        self.clock.now_s += 1
        made = entry(self.serial, scope=owner.scope, user=owner.user, request_key=f"r{request}")
        assert self.store.put_entry(made)
        self.entries[owner.scope, made.request_key] = self.serial

    @rule(owner=OWNERS, request=st.integers(0, 2))
    def delete_entry(self, owner: object, request: int) -> None:
        number = self.entries.pop((owner.scope, f"r{request}"), None)
        assert self.store.delete_entries([entry(number or 0).id]) == (number is not None)

    @rule(owner=OWNERS)
    def clear(self, owner: object) -> None:
        mine = [place for place in self.entries if place[0] == owner.scope]
        hashes = [key.hash for key in CHAINS[owner] if key.hash in self.blocks]
        assert self.store.clear(scopes=[owner.scope]) == (len(mine), len(hashes))
        for place in mine:
            del self.entries[place]
        for hash_ in hashes:
            del self.blocks[hash_]

    @rule(ram=st.sampled_from([0, 1500, 1 << 20]))
    def restart(self, ram: int) -> None:
        self.store.close()
        self.open(StoreLimits(ram, 1 << 24))
        assert self.store.warnings == []

    @rule(owner=OWNERS, query=st.integers(0, 9))
    def nearest(self, owner: object, query: int) -> None:
        found = [e.id for e, _ in self.store.nearest(owner.scope, vector(query), 10, None)]
        assert sorted(found) == sorted(entry(n).id for (scope, _), n in self.entries.items() if scope == owner.scope)

    @invariant()
    def reads_agree(self) -> None:
        for keys in CHAINS.values():
            run = []
            for key in keys:
                if key.hash not in self.blocks:
                    break
                run.append(self.blocks[key.hash])
            loaded = self.store.load_prefix(keys)
            assert len(loaded) == len(run)
            assert all(same(item, span(seed=seed)) for item, seed in zip(loaded, run, strict=True))
            assert [key.hash for key in self.store.missing(keys)] == [k.hash for k in keys if k.hash not in self.blocks]
        for owner in CHAINS:
            for request in range(3):
                number = self.entries.get((owner.scope, f"r{request}"))
                found = [e.id for e in self.store.find_exact(owner.scope, f"r{request}")]
                assert found == ([] if number is None else [entry(number).id])
        assert len(block_files(Path(self.folder.name) / "data")) == len(self.blocks)

    def teardown(self) -> None:
        assert self.store.check().problems == ()
        self.store.close()
        self.folder.cleanup()


TestAgainstDictionaries = AgainstDictionaries.TestCase
TestAgainstDictionaries.settings = settings(deadline=None, max_examples=15, stateful_step_count=12)
