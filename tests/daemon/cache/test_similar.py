"""Who may stand for a prompt and who may be its draft: never another user's answer, never a cut one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from semcache.daemon.cache.embedder import Vector
from semcache.daemon.cache.evidence import EvidenceBook
from semcache.daemon.cache.identity import identify
from semcache.daemon.cache.policy import OffPolicy, ThresholdPolicy
from semcache.daemon.cache.similar import MIN_DONOR_SCORE, NUM_CANDIDATES, Found, Similarity
from semcache.daemon.cache.strategy import access
from semcache.daemon.cache.verified import VerifiedPolicy
from semcache.daemon.request import Message, Request, Sampling
from semcache.store.store import Store
from tests.daemon.cache.words import MODEL, Cache, WordEmbedder, asked, per_user

WORDS = "rain snow hail wind fog frost made falls cold warm".split()


def search(store: Store, request: Request, policy: Any = None, *, embedder: Any = None, **options: Any) -> Found:
    used: Any = embedder or WordEmbedder()
    similarity = Similarity(store, policy or ThresholdPolicy(0.8), lambda: used)
    granted = options.pop("granted", None) or per_user(request)
    identity = identify(MODEL.fingerprint, request)
    return similarity.search(request, granted, identity, **{"may_serve": True, "may_draft": True} | options)


def test_ten_thousand_probes_cross_no_scope(store: Store) -> None:
    """Three users, with and without the shared scope of their principal: only what a probe may read comes back."""
    rng, cache = random.Random(5), Cache(store, OffPolicy())
    users = ["os:1/ann", "os:1/bob", "os:2/ann"]
    for user in users:
        for strategy in ("per_user", "global_only"):
            granted = access(strategy, user=user, allow_global="own")
            for i in range(2):
                prompt = " ".join(rng.sample(WORDS, 4))
                cache.answer(asked(prompt, user=user), tokens=[users.index(user), i], granted=granted)
    embedder: Any = WordEmbedder()
    similarity, num_found = Similarity(store, OffPolicy(), lambda: embedder), 0
    for _ in range(10_000):
        user = rng.choice(users)
        strategy = rng.choice(["per_user", "global_user", "global_only"])
        granted = access(strategy, user=user, allow_global="own")
        request = asked(" ".join(rng.sample(WORDS, 4)), user=user)
        may_serve = rng.random() < 0.5
        found = similarity.search(
            request, granted, identify(MODEL.fingerprint, request), may_serve=may_serve, may_draft=True
        )
        allowed = {scope.name for scope in granted.read}
        named = [n for n in (found.served, found.nearest, *found.donors) if n is not None]
        considered = found.verdict.considered if found.verdict is not None else ()
        assert {n.scope.name for n in named} | {n.entry.scope for n in named} <= allowed
        assert {item.candidate.scope for item in considered} <= allowed
        num_found += bool(named)
    assert num_found > 5_000, "the probes find something to begin with"


def test_nobody_near_costs_no_embedding(store: Store) -> None:
    class Counting(WordEmbedder):
        num_embedded = 0

        def embed(self, text: str) -> Vector:
            self.num_embedded += 1
            return super().embed(text)

    counting = Counting()
    assert search(store, asked("what is rain"), embedder=counting).reason == "empty"
    Cache(store).answer(asked("what is rain"))
    assert search(store, asked("what is rain", user="os:2"), embedder=counting).reason == "empty"
    other_context = asked("what is rain", earlier=(Message("system", "be short"),))
    assert search(store, other_context, embedder=counting, may_draft=False).reason == "no_candidate"
    assert (
        search(store, asked("what is rain"), embedder=counting, may_serve=False, may_draft=False).reason == "disabled"
    )
    assert counting.num_embedded == 0
    assert len(search(store, other_context, embedder=counting).donors) == 1
    assert counting.num_embedded == 1


def test_without_an_embedder_nothing_is_similar(store: Store) -> None:
    Cache(store).answer(asked("what is rain"))
    request = asked("so what is rain")
    found = Similarity(store, ThresholdPolicy(0.8), lambda: None).search(
        request, per_user(request), identify(MODEL.fingerprint, request), may_serve=True, may_draft=True
    )
    assert found == Found("disabled")


@pytest.mark.parametrize("policy", ["threshold", "verified"])
def test_a_poisoned_neighbour_with_the_same_embedding_is_no_more_than_a_draft(store: Store, policy: str) -> None:
    """An embedder that takes two texts for one: the wording or the lack of evidence stands against it."""

    class Blind(WordEmbedder):
        def embed(self, text: str) -> Vector:
            return super().embed("the same")

    blind: Any = Blind()
    cache = Cache(store)
    cache.lookup = cache.lookup.__class__(store, ThresholdPolicy(0.8), lambda: blind)
    cache.admission = cache.admission.__class__(store, lambda: blind)
    poisoned = cache.answer(asked("what is the capital of Austria"), "Vienna")
    request = asked("what is the capital of Australia")
    judge = ThresholdPolicy(0.8) if policy == "threshold" else VerifiedPolicy(EvidenceBook())
    found = search(store, request, judge, embedder=blind)
    assert found.served is None
    assert found.reason.startswith("policy:")
    assert [donor.entry.id for donor in found.donors] == [poisoned.id]
    assert found.donors[0].score == pytest.approx(1)


def test_a_cut_or_too_long_answer_stands_for_nobody_and_may_be_a_draft(store: Store) -> None:
    cache = Cache(store)
    limit = Sampling(max_tokens=3)
    cache.answer(asked("what is rain", sampling=limit), finish_reason="length")
    for sampling in (limit, Sampling(max_tokens=8)):
        found = search(store, asked("so what is rain", sampling=sampling))
        assert (found.served, found.reason, len(found.donors)) == (None, "no_candidate", 1)
        assert found.verdict is not None
        assert found.verdict.considered == (), "what may not stand for it teaches nothing either"
    cache.answer(asked("what is snow"), tokens=[1, 2, 3, 4])
    assert search(store, asked("so what is snow", sampling=limit)).served is None
    assert search(store, asked("so what is snow", sampling=Sampling(max_tokens=4))).served is not None


def test_donors_may_be_of_another_model_context_or_sampling(store: Store) -> None:
    cache = Cache(store)
    cache.answer(asked("what is rain"), tokens=[1], model=replace(MODEL, fingerprint="other"))
    cache.answer(asked("what is rain", sampling=Sampling(temperature=0.5, seed=1)), tokens=[2])
    found = search(store, asked("so what is rain"))
    assert found.served is None
    assert len(found.donors) == 1, "one nearest of each scope is enough"
    assert found.nearest == found.donors[0]


def test_what_is_far_is_no_donor(store: Store) -> None:
    cache = Cache(store)
    cache.answer(asked("rain a b c"), tokens=[1])
    assert search(store, asked("rain d e f")).donors == ()
    near = search(store, asked("rain a e f")).donors
    assert [donor.score >= MIN_DONOR_SCORE for donor in near] == [True]


def test_no_more_candidates_than_the_policy_wants_and_best_first(store: Store) -> None:
    cache = Cache(store, OffPolicy())
    for i, word in enumerate(WORDS):
        cache.answer(asked(f"what is {word} like"), tokens=[i])
    found = search(store, asked("what is rain like"), OffPolicy())
    assert found.verdict is not None
    scores = [item.candidate.score for item in found.verdict.considered]
    assert len(scores) == NUM_CANDIDATES
    assert scores == sorted(scores, reverse=True)
    assert [donor.score for donor in found.donors] == scores


def test_a_preview_is_no_request_for_the_policy(store: Store) -> None:
    policy = VerifiedPolicy(EvidenceBook())
    Cache(store).answer(asked("what is rain"))
    scope = per_user(asked("")).read[0].name
    for _ in range(3):
        search(store, asked("so what is rain"), policy, preview=True)
    assert policy.status(scope).requests == 0
    search(store, asked("so what is rain"), policy)
    assert policy.status(scope).requests == 1
