"""What is written back of a request's KV where some of it was restored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semcache.daemon.cache.admit import PromptKV
from semcache.daemon.cache.strategy import access
from semcache.daemon.cuts import Cuts
from semcache.daemon.request import CacheMode
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from tests.daemon.cache.words import MODEL, Cache, asked, per_user, span

TOKENS = list(range(40))
BLOCK = MODEL.block_tokens


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "data", StoreLimits(ram_bytes=1 << 20, disk_bytes=1 << 24))
    yield opened
    opened.close()


@pytest.fixture
def cache(store: Store) -> Cache:
    return Cache(store)


def behind(first_token: int) -> PromptKV:
    return PromptKV([span(TOKENS[first_token:])], torch.arange(8.0), 1.0, first_token)


def restored(cache: Cache) -> int:
    request = asked("again", tokens=TOKENS, options={"mode": CacheMode.PREFIX})
    match = cache.find(request)
    kv = [part.keys for part in match.spans]
    assert not kv or torch.equal(torch.cat(kv, dim=2), span(TOKENS[: match.num_restored]).keys)
    return match.num_restored


def test_kv_behind_what_is_stored_completes_it(cache: Cache) -> None:
    cache.answer(asked("first", tokens=TOKENS[: 2 * BLOCK]))
    request = asked("longer", tokens=TOKENS)
    assert cache.admission.store_kv(request, per_user(request), MODEL, behind(2 * BLOCK))
    assert restored(cache) == len(TOKENS)


@pytest.mark.parametrize("has_dropped", ["a block", "the record"])
def test_what_was_dropped_since_it_was_restored_is_not_made_up(cache: Cache, store: Store, has_dropped: str) -> None:
    request = asked("first", tokens=TOKENS)
    if has_dropped == "a block":
        assert not cache.admission.store_kv(request, per_user(request), MODEL, behind(BLOCK))
    else:
        cache.answer(asked("shorter", tokens=TOKENS[: 2 * BLOCK]))
        assert not cache.admission.store_kv(request, per_user(request), MODEL, behind(len(TOKENS)))
    items = store.tier_status()["disk"].items
    assert items == (0 if has_dropped == "a block" else 3), "nothing that nobody could find"
    assert cache.admission.store_kv(request, per_user(request), MODEL, behind(0))
    assert restored(cache) == len(TOKENS)


def test_kv_restored_from_one_scope_is_written_to_another(cache: Cache) -> None:
    shared = access("global_only", user="os:1/bob", allow_global="own")
    both = access("global_user", user="os:1/ann", allow_global="own")
    cache.answer(asked("first", tokens=TOKENS, user="os:1/bob"), granted=shared)
    for granted, num_stored in ((shared, len(TOKENS)), (both, 0), (both, len(TOKENS))):
        request = asked("again", tokens=TOKENS, options={"mode": CacheMode.PREFIX})
        match = cache.find(request, granted)
        match.give_kv(request)
        assert (request.num_restored, request.num_stored) == (len(TOKENS), num_stored)
        assert sum(part.num_tokens for part in request.restored) == len(TOKENS)
        assert not match.spans, "whoever holds the match holds no memory"
        assert cache.admission.store_kv(request, granted, MODEL, behind(num_stored))
    assert restored(cache) == len(TOKENS)


@pytest.mark.parametrize("num_shared", [2 * BLOCK, 2 * BLOCK - 1, BLOCK + 1, BLOCK - 1])
def test_what_a_larger_block_brought_is_stored_in_blocks_of_this_size(cache: Cache, num_shared: int) -> None:
    """After `cache.block_tokens` was lowered: else nothing of such a prompt would ever be stored again."""
    smaller = replace(MODEL, numerics="rounding", cuts=Cuts(1, 1))
    larger = replace(smaller, block_tokens=2 * BLOCK)
    cache.answer(asked("first", tokens=[*TOKENS[:num_shared], *[99] * 20]), model=larger)
    for num_restored, num_stored in ((num_shared, 0), (len(TOKENS), len(TOKENS))):
        request = asked("again", tokens=TOKENS, options={"mode": CacheMode.PREFIX})
        cache.lookup.find(request, per_user(request), smaller).give_kv(request)
        assert (request.num_restored, request.num_stored) == (num_restored, num_stored)
        assert cache.admission.store_kv(request, per_user(request), smaller, behind(num_stored))
