"""Down the ladder in a real store: who may find what, and the reason why no higher rung served."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semcache.daemon.cache.admit import PromptKV
from semcache.daemon.cache.identity import identify
from semcache.daemon.cache.lookup import Match, ModelKey, PromptKeys
from semcache.daemon.cache.policy import OffPolicy
from semcache.daemon.cache.strategy import Access, access
from semcache.daemon.cuts import Cuts
from semcache.daemon.request import CacheMode, Message, Outcome, Request, Sampling
from semcache.store.aliases import Alias
from semcache.store.files import Files
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from tests.daemon.cache.words import MODEL, Cache, asked, per_user, span, told


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


ROUNDING = replace(MODEL, numerics="rounding", cuts=Cuts(1, 1))
NARROW = replace(MODEL, numerics="narrow", cuts=Cuts(32, 8))


def round_find(cache: Cache, tokens: list[int], granted: Access | None = None) -> Match:
    request = asked("first", tokens=tokens, options={"mode": CacheMode.PREFIX})
    return cache.lookup.find(request, granted or per_user(request), ROUNDING)


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 32, 40])
def test_in_rounding_every_number_of_tokens_is_restored(cache: Cache, num_tokens: int) -> None:
    tokens = list(range(num_tokens))
    cache.answer(asked("first", tokens=tokens), model=ROUNDING)
    whole = round_find(cache, tokens)
    assert whole.num_restored == num_tokens
    assert isinstance(whole.prompt_logits, torch.Tensor)
    for cut in range(num_tokens + 1):
        other = round_find(cache, [*tokens[:cut], 99, 98])
        assert told(other)[0] == ("prefix" if cut else "miss")
        assert (other.num_restored, other.receipt.prefix_tokens, other.prompt_logits) == (cut, cut, None)
        if cut:
            assert torch.equal(torch.cat([s.keys for s in other.spans], dim=2), span(tokens[:cut]).keys)
        if 0 < cut < num_tokens:
            shorter = round_find(cache, tokens[:cut])
            assert shorter.num_restored == sum(s.num_tokens for s in shorter.spans) == cut - 1, "logits are needed"


def test_in_rounding_an_answer_is_part_of_the_next_prompt(cache: Cache, store: Store) -> None:
    request = asked("first", tokens=list(range(20)))
    request.output_tokens = list(range(100, 117))
    answered = list(range(20)) + request.output_tokens[:-1]  # the newest token was no step's input
    kv = PromptKV([span(answered[:5]), span(answered[5:20]), span(answered[20:])], torch.arange(8.0), 2.0)
    assert cache.admission.store_kv(request, per_user(request), ROUNDING, kv)
    whole = round_find(cache, list(request.prompt_tokens))
    assert isinstance(whole.prompt_logits, torch.Tensor), "the prompt's own record is there as well"
    for num_more in (0, 5):
        match = round_find(cache, [*answered, request.output_tokens[-1], *[7] * num_more])
        assert match.num_restored == len(answered)
        assert torch.equal(torch.cat([s.keys for s in match.spans], dim=2), span(answered).keys)
    edited = round_find(cache, [*answered[:25], 9, *answered[26:]])
    assert edited.num_restored == 25, "an answer that was cut or changed"
    costs = {
        row["num_tokens"]: row["compute_ms"] for row in store._db.rows("SELECT * FROM blocks WHERE kind = 'block'")
    }
    assert costs == {16: 32.0, 4: 8.0}
    assert cache.admission.store_kv(request, per_user(request), ROUNDING, kv), "nothing to do"


def test_in_rounding_the_scope_that_shares_most_serves_and_no_other_is_read(cache: Cache) -> None:
    tokens = list(range(40))
    both = access("global_user", user="os:1/ann", allow_global="own")
    shared = access("global_only", user="os:1/bob", allow_global="own")
    cache.answer(asked("first", tokens=tokens[:20]), model=ROUNDING)
    cache.answer(asked("first", tokens=tokens, user="os:1/bob"), model=ROUNDING, granted=shared)
    match = round_find(cache, [*tokens[:30], 99], both)
    assert (match.num_restored, match.receipt.scope) == (30, "global")
    assert round_find(cache, [*tokens[:30], 99]).num_restored == 20
    stranger = asked("first", tokens=tokens, user="os:1/eve")
    assert cache.lookup.find(stranger, per_user(stranger), ROUNDING).num_restored == 0


class CountedFiles(Files):
    num_reads = 0

    def read(self, path: Path, size_bytes: int) -> memoryview:
        self.num_reads += 1
        return super().read(path, size_bytes)


@pytest.fixture
def files() -> CountedFiles:
    return CountedFiles()


@pytest.fixture
def cold(tmp_path: Path, files: CountedFiles) -> Iterator[Cache]:
    """A cache that reads all KV from disk."""
    store = Store.open(tmp_path / "cold", StoreLimits(ram_bytes=1, disk_bytes=10**8), files=files)
    yield Cache(store)
    store.close()


@pytest.mark.parametrize("model", [MODEL, ROUNDING, NARROW], ids=["bitwise", "rounding", "narrow"])
@pytest.mark.parametrize("num_tokens", [15, 32, 40])
def test_a_whole_prompt_may_arrive_late_and_nothing_else(
    cold: Cache, files: CountedFiles, model: ModelKey, num_tokens: int
) -> None:
    tokens = list(range(num_tokens))
    cold.answer(asked("first", tokens=tokens), model=model)

    def find(prompt: list[int], *, late: bool) -> Match:
        request = asked("first", tokens=prompt, options={"mode": CacheMode.PREFIX})
        match = cold.lookup.find_answer(request, per_user(request), model)
        cold.lookup.find_prefix(request, per_user(request), model, match, may_arrive_late=late)
        return match

    at_once, files.num_reads = find(tokens, late=False), 0
    late = find(tokens, late=True)
    has_blocks = num_tokens >= model.cuts.every and num_tokens >= model.block_tokens
    assert (late.arriving is not None, files.num_reads) == (has_blocks, 1), "the record only"
    assert (late.num_restored, late.receipt) == (num_tokens, at_once.receipt)
    assert torch.equal(late.prompt_logits, at_once.prompt_logits)
    spans = list(late.arriving) if late.arriving is not None else late.spans
    assert [span.num_tokens for span in spans] == [span.num_tokens for span in at_once.spans]
    assert all(map(torch.equal, (span.keys for span in spans), (span.keys for span in at_once.spans)))
    assert find([*tokens, 7], late=True).arriving is None, "here the first token needs the KV"
    assert find([], late=True).arriving is None


@pytest.mark.parametrize("model", [MODEL, ROUNDING, NARROW], ids=["bitwise", "rounding", "narrow"])
@pytest.mark.parametrize("num_tokens", [15, 32, 40, 64, 100])
def test_what_both_scopes_hold_is_read_from_one(
    cold: Cache, files: CountedFiles, model: ModelKey, num_tokens: int
) -> None:
    tokens = list(range(num_tokens))
    both = access("global_user", user="os:1/ann", allow_global="own")
    cold.answer(asked("first", tokens=tokens), model=model, granted=both)
    for prompt in (tokens, [*tokens, 7, 7], tokens[:-1], [*tokens[: num_tokens // 2], 7, 7]):
        request = asked("first", tokens=prompt, options={"mode": CacheMode.PREFIX})
        files.num_reads = 0
        alone = cold.lookup.find(request, per_user(request), model)
        num_alone, files.num_reads = files.num_reads, 0
        match = cold.lookup.find(request, both, model)
        # In `rounding` the one block by which the other scope may go on is looked into.
        assert files.num_reads <= num_alone + (model is ROUNDING), prompt
        assert match.num_restored == alone.num_restored


@pytest.mark.parametrize("model", [MODEL, ROUNDING, NARROW], ids=["bitwise", "rounding", "narrow"])
@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 63, 64, 65])
def test_whichever_scope_covers_more_serves(cold: Cache, model: ModelKey, num_tokens: int) -> None:
    """Every number of tokens in each of the two scopes, with and without what follows the prompt's last token."""
    prompt = list(range(num_tokens))
    both = access("global_user", user="os:1/ann", allow_global="own")
    shared = access("global_only", user="os:1/ann", allow_global="own")
    request = asked("first", tokens=prompt, options={"mode": CacheMode.PREFIX})
    for own, other in itertools.product((0, 16, 32, 63, num_tokens, num_tokens + 32), repeat=2):
        cold.store.clear(user="os:1/ann")
        for num, granted in ((own, per_user(request)), (other, shared)):
            if num:
                behind = [99] * max(num - num_tokens, num < num_tokens)
                cold.answer(asked("first", tokens=[*prompt[:num], *behind]), model=model, granted=granted)
        alone = [cold.lookup.find(request, granted, model).num_restored for granted in (per_user(request), shared)]
        match = cold.lookup.find(request, both, model)
        assert match.num_restored == max(alone), (own, other)
        assert match.num_restored == sum(span.num_tokens for span in match.spans)
        if match.num_restored:
            assert match.receipt.scope == ("user" if alone[0] >= alone[1] else "global"), (own, other)


@pytest.mark.parametrize(("num_tokens", "num_restored"), [(32, 0), (64, 56), (65, 64), (80, 64), (96, 88)])
def test_a_prompt_that_a_longer_one_begins_with_is_restored_but_for_its_logits(
    cache: Cache, num_tokens: int, num_restored: int
) -> None:
    tokens = list(range(num_tokens))
    cache.answer(asked("longer", tokens=[*tokens, *range(100, 132)]), model=NARROW)
    request = asked("shorter", tokens=tokens, options={"mode": CacheMode.PREFIX})
    match = cache.lookup.find(request, per_user(request), NARROW)
    assert (match.num_restored, match.receipt.prefix_tokens, match.prompt_logits) == (num_restored, num_restored, None)
    if num_restored:
        assert torch.equal(torch.cat([s.keys for s in match.spans], dim=2), span(tokens[:num_restored]).keys)


def test_the_modes_never_meet(cache: Cache) -> None:
    tokens = list(range(64))
    request = asked("first", tokens=tokens)
    cache.answer(request)
    assert round_find(cache, tokens).num_restored == 0
    cache.answer(asked("second", tokens=[*tokens, 5]), model=ROUNDING)
    assert cache.find(asked("third", tokens=[*tokens, 5, 6])).num_restored == 64
    assert cache.find(asked("third", tokens=[*tokens[:40], 6])).num_restored == 32


def test_in_rounding_what_is_not_worth_loading_is_not_looked_for_elsewhere(store: Store) -> None:
    cache = Cache(store, OffPolicy(), prefill_ms_per_token=lambda: 1e-12)
    tokens = list(range(40))
    cache.answer(asked("first", tokens=tokens), model=ROUNDING)
    store.load_prefix(PromptKeys.of(per_user(asked("")).read[0], ROUNDING, tokens).blocks)  # measures RAM
    assert round_find(cache, [*tokens[:30], 99]).num_restored == 0
    assert store.counters()["computed_instead"] == 1


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
