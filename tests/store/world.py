"""A small store with something in every table, and what it may and may not say after something went wrong."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from semcache.store.blocks import BlockKey, Owner
from semcache.store.entries import Entry
from semcache.store.store import DATABASE_NAME, Store
from semcache.store.tensors import KVSpan
from semcache.store.vectors import Partition, unit

from .samples import (
    ALICE,
    BOB,
    alias,
    chain,
    decision,
    entry,
    evidence,
    same,
    span,
    tail,
    tail_of,
    usage_record,
    vector,
)

CHAINS: tuple[tuple[Owner, list[BlockKey]], ...] = ((ALICE, chain(3)), (BOB, chain(2, start=500)))
TAIL_KEY, TAIL = tail_of(CHAINS[0][1]), tail()
NAMES = [key.hash for key in (*CHAINS[0][1], TAIL_KEY)]
ENTRIES = {
    item.id: item
    for item in (
        entry(1), entry(2), entry(3, scope=BOB.scope, user=BOB.user),
        entry(4, context_key="other"), entry(5, pinned=True),
    )
}  # fmt: skip
ALIASES = {(item.scope, item.request_key): item for item in (alias(1), alias(2), alias(2, "second"))}
EVIDENCE = {item.entry_id: item for item in (evidence(1), evidence(2, num_same=7))}
TTL_S = 10**7
STATE = '{"weights": [0.5, 0.25]}'
HERE = Partition("fp1", "ctx", "par", "minilm")


def span_of(key: BlockKey) -> KVSpan:
    return span(seed=key.first_token + key.token_ids[0])


def put_blocks(store: Store) -> list[bool]:
    done = [store.put_block(key, span_of(key), owner, 5.0) for owner, keys in CHAINS for key in keys]
    return [*done, store.put_tail(TAIL_KEY, TAIL, ALICE, 5.0)]


def put_answers(store: Store) -> list[bool]:
    done = [store.put_entry(item, NAMES if item.scope == ALICE.scope else ()) for item in ENTRIES.values()]
    done += [store.aliases.put(item) for item in ALIASES.values()]
    done.append(store.evidence.save_evidence(ALICE.scope, STATE, list(EVIDENCE.values())))
    done.append(store.evidence.add_negative(ALICE.scope, "pair"))
    done.append(store.decisions.record([decision(1), decision(2)]))
    store.record_request(usage_record(1))
    return done


def fill(store: Store) -> list[bool]:
    """Store everything, also what is there already; says of each thing whether it was kept."""
    return put_blocks(store) + put_answers(store)


def read(store: Store) -> Counter[str]:
    """Ask for everything in every way; what comes must be what was stored. Returns how many things were missing."""
    missed: Counter[str] = Counter()
    for _, keys in CHAINS:
        loaded = store.load_prefix(keys)
        assert all(same(got, span_of(key)) for got, key in zip(loaded, keys, strict=False))
        missed["blocks"] += len(keys) - len(loaded)
        store.missing(keys)
    record = store.load_prompt([], TAIL_KEY).record
    assert record is None or (same(record.span, TAIL.span) and torch.equal(record.logits, TAIL.logits))
    missed["tails"] += record is None
    for item in ENTRIES.values():
        found = store.find_exact(item.scope, item.request_key)
        assert len(found) <= 1
        for one in found:
            is_what_was_stored(one)
        missed["entries"] += not found
        shown = store.get_entry(item.id)
        assert shown is None or is_what_was_stored(shown)
    for scope in (ALICE.scope, BOB.scope):
        neighbours = store.nearest(scope, vector(1), 9, None)
        near, donor = store.nearest_and_donor(scope, vector(1), 9, HERE)
        are_near(scope, [*neighbours, *near, *([donor] if donor else [])])
        missed["neighbours"] += sum(item.scope == scope for item in ENTRIES.values()) - len(neighbours)
    for place, item in ALIASES.items():
        aliased = store.aliases.find(*place)
        assert aliased is None or (aliased.id == item.entry_id and is_what_was_stored(aliased))
        missed["aliases"] += aliased is None
        store.aliases.of(item.entry_id)
    learned = store.evidence.load_evidence(ALICE.scope)
    if learned is not None:
        assert learned.state in (None, STATE)
        assert all(item == EVIDENCE[item.entry_id] for item in learned.entries)
        missed["evidence"] += (learned.state is None) + len(EVIDENCE) - len(learned.entries)
    else:
        missed["evidence"] += 1 + len(EVIDENCE)
    marked = store.evidence.load_negatives(ALICE.scope)
    missed["marks"] += marked is not None and "pair" not in marked
    look_around(store)
    return missed


def behind_changed_files(before: Path, after: Path) -> Counter[str]:
    """How many blocks and records a store cannot serve whose files changed: these, and what follows a changed block."""
    changed = {path.name.split(".")[0] for path in files_of(before) if not _is_same(path, after, before)}
    lost: Counter[str] = Counter()
    for _, keys in CHAINS:
        first = next((at for at, key in enumerate(keys) if key.hash in changed), len(keys))
        lost["blocks"] += len(keys) - first
    lost["tails"] += TAIL_KEY.hash in changed
    return lost


def _is_same(path: Path, after: Path, before: Path) -> bool:
    now = after / path.relative_to(before)
    # Sizes first: it may have become larger than what can be read.
    return now.is_file() and now.stat().st_size == path.stat().st_size and now.read_bytes() == path.read_bytes()


def rows_of(data_dir: Path, tables: Sequence[str]) -> dict[str, list[tuple[object, ...]]]:
    """Everything that is committed, as another process sees it."""
    with closing(sqlite3.connect(data_dir / DATABASE_NAME)) as connection:
        return {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}


def is_what_was_stored(found: Entry) -> bool:
    want = ENTRIES[found.id]
    assert found.expires_at in (None, want.created_at + TTL_S)
    moved = {"expires_at": want.expires_at, "last_used_at": want.last_used_at, "hits": want.hits, "pinned": want.pinned}
    assert replace(found, **moved) == want  # type: ignore[arg-type]
    return True


def are_near(scope: str, pairs: Sequence[tuple[Entry, float]]) -> None:
    query = unit(vector(1))
    assert query is not None
    for found, score in pairs:
        is_what_was_stored(found)
        assert found.scope == scope
        assert found.vector is not None
        own = unit(found.vector)
        assert own is not None
        assert score == pytest.approx(float(np.dot(own, query)), abs=1e-5)


def look_around(store: Store) -> None:
    """What people and metrics ask for; the numbers may be off, the answer must come."""
    store.load_prefix(CHAINS[0][1], ms_per_token=1e6)
    json.dumps([asdict(item) for item in (*store.decisions.recent(), store.usage())], allow_nan=False)
    store.decisions.of_request("req_1")
    store.decisions.due_audits(9)
    store.decisions.num_due()
    store.decisions.wrong_hits()
    store.decisions.wrong_hits_by_user()
    store.evidence.of_entry(entry(1).id)
    store.list_entries(limit=-1)
    store.prompt_stored(entry(1).id)
    store.num_pinned()
    store.list_entries(sort="hits", match="question")
    json.dumps([asdict(row) for row in store.recent_requests()])
    store.users()
    store.num_entries()
    store.tier_status()
    store.has_neighbours(ALICE.scope, HERE)


def files_of(data_dir: Path) -> list[Path]:
    return sorted(path for path in (data_dir / "kv").rglob("*.safetensors"))
