"""Down the ladder in a real store: who may find what, and the reason why no higher rung served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semcache.daemon.cache.identity import identify
from semcache.daemon.cache.policy import OffPolicy
from semcache.daemon.cache.strategy import access
from semcache.daemon.request import CacheMode, Message, Outcome, Request, Sampling
from semcache.store.aliases import Alias
from semcache.store.store import Store, StoreLimits
from tests.daemon.cache.words import MODEL, Cache, asked, per_user, span, told


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    yield store
    store.close()


@pytest.fixture
def cache(store: Store) -> Cache:
    return Cache(store)


def test_reasons_on_the_way_down(cache: Cache) -> None:
    assert told(cache.find(asked("what is rain"))) == ("miss", "empty")
    cache.answer(asked("what is rain"))
    assert told(cache.find(asked("what is rain"))) == ("exact", "identical")
    assert told(cache.find(asked("what is rain made of"))) == ("miss", "policy:threshold")
    assert told(cache.find(asked("so what is rain"))) == ("semantic", "similar")
    assert told(cache.find(asked("word " * 21))) == ("miss", "too_long")
    assert told(cache.find(asked("what is rain", options={"mode": CacheMode.OFF}))) == ("miss", "disabled")
    unseeded = asked("what is rain", sampling=Sampling(temperature=1.0))
    assert cache.find(unseeded).receipt.reason == "params"


def test_a_prompt_in_another_context_has_no_candidate_but_a_donor(cache: Cache) -> None:
    france, spain = (Message("user", "About France."),), (Message("user", "About Spain."),)
    cache.answer(asked("Why?", earlier=france), "because of wine")
    match = cache.find(asked("Why?", earlier=spain))
    assert told(match) == ("miss", "no_candidate")
    assert [donor.entry.answer for donor in match.donors] == ["because of wine"], "the model checks every token of it"
    plain = cache.find(asked("Why?", earlier=spain, options={"mode": CacheMode.EXACT}))
    assert (told(plain), plain.embed_ms, plain.donors) == (("miss", "no_candidate"), None, ())
    assert told(cache.find(asked("Why?", earlier=france)))[0] == "exact"


def test_other_users_find_nothing(cache: Cache) -> None:
    cache.answer(asked("what is rain"))
    for user in ("os:1/bob", "os:1", "os:2/ann"):
        match = cache.find(asked("what is rain", user=user))
        assert told(match) == ("miss", "empty")
        assert match.num_restored == 0


def test_a_tie_goes_to_the_users_own_scope(cache: Cache) -> None:
    granted = access("global_user", user="os:1/ann", allow_global="own")
    cache.answer(asked("what is rain", user="os:1/ann"), "mine", granted=granted)
    match = cache.find(asked("so what is rain"), granted)
    assert (match.receipt.outcome, match.receipt.scope) == (Outcome.SEMANTIC, "user")
    bob = access("global_user", user="os:1/bob", allow_global="own")
    assert cache.find(asked("so what is rain", user="os:1/bob"), bob).receipt.scope == "global"


def test_an_answer_that_was_cut_serves_only_its_own_request(cache: Cache) -> None:
    limit = Sampling(max_tokens=3)
    cache.answer(asked("what is rain", sampling=limit), finish_reason="length")
    assert told(cache.find(asked("what is rain", sampling=limit)))[0] == "exact"
    assert told(cache.find(asked("what is rain")))[0] == "prefix"
    assert told(cache.find(asked("so what is rain", sampling=limit)))[0] != "semantic"


@pytest.mark.parametrize("num_tokens", [31, 32, 33, 63, 64, 65, 96])
def test_the_identical_prompt_is_restored_whole_and_others_to_a_chunk_boundary(cache: Cache, num_tokens: int) -> None:
    tokens = list(range(num_tokens))
    cache.answer(asked("first", tokens=tokens))
    only_kv = {"options": {"mode": CacheMode.PREFIX}}
    whole = cache.find(asked("first", tokens=tokens, **only_kv))
    assert whole.num_restored == num_tokens
    assert isinstance(whole.prompt_logits, torch.Tensor)
    assert torch.equal(torch.cat([s.keys for s in whole.spans], dim=2), span(tokens).keys)
    longer = cache.find(asked("first", tokens=[*tokens, 7, 7], **only_kv))
    assert longer.num_restored == num_tokens // 32 * 32
    assert longer.prompt_logits is None
    shorter = cache.find(asked("first", tokens=tokens[:-1], **only_kv))
    assert shorter.num_restored == (num_tokens - 2) // 32 * 32
    assert sum(s.num_tokens for s in shorter.spans) == shorter.num_restored
    other = cache.find(asked("first", tokens=[99, *tokens[1:]], **only_kv))
    assert told(other)[0] == "miss"


def test_another_model_or_machine_finds_nothing(cache: Cache) -> None:
    request = asked("what is rain", tokens=list(range(64)))
    cache.answer(request)
    for other in (replace(MODEL, fingerprint="f2"), replace(MODEL, numerics="n2")):
        match = cache.lookup.find(asked("what is rain", tokens=list(range(64))), per_user(request), other)
        assert match.num_restored == 0
    assert cache.lookup.find(request, per_user(request), replace(MODEL, fingerprint="f2")).answer is None


def test_a_verified_wording_is_an_exact_key(cache: Cache, store: Store) -> None:
    entry = cache.answer(asked("what is rain"))
    other = asked("where does wet weather come from")
    key = identify(MODEL.fingerprint, other).request_key
    assert told(cache.find(other))[0] == "miss"
    store.aliases.put(Alias(entry.scope, key, entry.id, other.last_user_message, other.user, 1.0))
    match = cache.find(other)
    assert told(match) == ("exact", "alias")
    assert (match.receipt.entry_id, match.receipt.score, match.receipt.scope) == (entry.id, None, "user")
    assert match.receipt.matched_prompt == "what is rain"
    assert told(cache.find(replace_user(other, "os:1/bob"))) == ("miss", "empty")
    short = asked(other.last_user_message, sampling=Sampling(max_tokens=2))
    assert cache.find(short).answer is None, "a longer answer than was asked for"
    store.delete_entries([entry.id])
    assert told(cache.find(other))[0] not in ("exact", "semantic")


def test_the_identical_request_goes_before_an_alias(cache: Cache, store: Store) -> None:
    first, second = cache.answer(asked("what is rain")), cache.answer(asked("what is snow"), "white")
    key = identify(MODEL.fingerprint, asked("what is snow")).request_key
    store.aliases.put(Alias(first.scope, key, first.id, "what is snow", "os:1/ann", 1.0))
    match = cache.find(asked("what is snow"))
    assert told(match) == ("exact", "identical")
    assert match.receipt.entry_id == second.id


def replace_user(request: Request, user: str) -> Request:
    return asked(request.last_user_message, user=user)


def test_a_preview_finds_the_same_and_leaves_no_trace(cache: Cache, store: Store) -> None:
    entry = cache.answer(asked("what is rain"))
    other = asked("where does wet weather come from")
    key = identify(MODEL.fingerprint, other).request_key
    store.aliases.put(Alias(entry.scope, key, entry.id, other.last_user_message, other.user, 1.0))
    for request in (asked("what is rain"), asked("so what is rain"), other):
        looked = cache.find(request, preview=True)
        kept = store.get_entry(entry.id)
        assert kept is not None
        assert kept.hits == 0
        assert sum(alias.hits for alias in store.aliases.of(entry.id)) == 0
        assert told(looked) == told(cache.find(asked(request.last_user_message), preview=True))
    for request in (asked("what is rain"), asked("so what is rain"), other):
        cache.find(request)
    kept = store.get_entry(entry.id)
    assert kept is not None
    assert kept.hits == 3
    assert sum(alias.hits for alias in store.aliases.of(entry.id)) == 1


def test_donors_are_listed_best_first_and_named_in_the_receipt(store: Store) -> None:
    cache = Cache(store, OffPolicy())
    near = cache.answer(asked("what is rain made of"), tokens=[1, 2])
    far = cache.answer(asked("what is snow made of"), tokens=[3, 4])
    cache.answer(asked("what is rain made from"), tokens=[1, 2])  # says the same: nothing more to try
    match = cache.find(asked("so what is rain made of"))
    assert [found.entry.answer_tokens for found in match.donors] == [(1, 2), (3, 4)]
    assert [found.entry.id for found in match.donors] == [near.id, far.id]
    assert (match.receipt.entry_id, match.receipt.matched_prompt) == (near.id, "what is rain made of")
    assert told(match)[0] in ("miss", "prefix")
    assert cache.find(asked("nothing alike at all here")).donors == ()


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("mode", list(CacheMode))
def test_modes_decide_what_may_help(store: Store, mode: CacheMode, drafts: bool) -> None:
    cache = Cache(store, drafts=drafts)
    cache.answer(asked("what is rain"))
    options = {"mode": mode}
    same, other = (
        cache.find(asked("what is rain", options=options)),
        cache.find(asked("so what is rain", options=options)),
    )
    assert (same.answer is not None) == mode.allows_exact
    assert (other.answer is not None) == (mode is CacheMode.AUTO)
    assert bool(other.donors) == (mode is CacheMode.LOSSLESS and drafts)
    cached_only = {"mode": mode, "cached_only": True}
    assert cache.find(asked("what is so rain like", options=cached_only)).donors == ()


def test_a_refresh_skips_answers_and_keeps_donors(cache: Cache) -> None:
    cache.answer(asked("what is rain"))
    match = cache.find(asked("so what is rain", options={"refresh": True}))
    assert match.answer is None
    assert match.verdict is None, "nothing is decided, so nothing is learned"
    assert match.receipt.reason == "disabled"
    assert len(match.donors) == 1


def test_openings_come_from_readable_scopes_of_this_model(cache: Cache) -> None:
    ann, bob = asked("what is rain", user="os:1/ann"), asked("what is rain", user="os:1/bob")
    mine = cache.answer(ann, tokens=[5, 6, 7, 8])
    cache.answer(bob, tokens=[5, 6, 7, 9])
    cache.answer(asked("what is hail", user="os:1/ann"), tokens=[5, 6, 7, 1], model=replace(MODEL, fingerprint="f2"))
    shared = access("global_only", user="os:1/bob", allow_global="own")
    cache.answer(asked("what is snow", user="os:1/bob"), tokens=[5, 6, 7, 2], granted=shared)
    found = cache.lookup.openings([5, 6, 7], per_user(ann), MODEL)
    assert [(donor.tokens, donor.entry_id, donor.scope) for donor in found] == [((5, 6, 7, 8), mine.id, "user")]
    assert found[0].prompt == "what is rain"
    assert found[0].score is None
    both = access("global_user", user="os:1/ann", allow_global="own")
    assert [donor.scope for donor in cache.lookup.openings([5, 6, 7], both, MODEL)] == ["user", "global"]
    assert cache.lookup.openings([5, 6, 7], access("no_cache", user="os:1/ann", allow_global="own"), MODEL) == []
    assert cache.lookup.openings([5, 6, 8], both, MODEL) == []
