"""Down the ladder in a real store: who may find what, and the reason why no higher rung served."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semcache.daemon.cache.admit import Admission, PromptKV
from semcache.daemon.cache.embedder import Vector
from semcache.daemon.cache.lookup import Lookup, Match, ModelKey
from semcache.daemon.cache.policy import ThresholdPolicy
from semcache.daemon.cache.strategy import Access, access
from semcache.daemon.request import CacheMode, CacheOptions, Message, Outcome, Request, RequestState, Sampling
from semcache.store.store import Store, StoreLimits
from semcache.store.tensors import KVSpan

MODEL = ModelKey("m", "m-1", "fingerprint", "numerics", prefill_chunk_tokens=32, block_tokens=16)


class WordEmbedder:
    """Bags of words as vectors, so a test decides what is similar; the interface of the real one."""

    name = "words"
    max_tokens = 20

    def num_tokens(self, text: str) -> int:
        return len(text.split())

    def embed(self, text: str) -> Vector:
        vector = np.zeros(256, dtype=np.float32)
        for word in text.lower().strip("?").split():
            vector[zlib.crc32(word.encode()) % 256] += 1
        return vector / np.float32(np.linalg.norm(vector))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "data", StoreLimits(ram_bytes=10**7, disk_bytes=10**8))
    yield store
    store.close()


@pytest.fixture
def cache(store: Store) -> Cache:
    return Cache(store)


class Cache:
    """Look-up and admission over one store, as the service uses them."""

    def __init__(self, store: Store) -> None:
        embedder: Any = WordEmbedder()
        self.store = store
        self.lookup = Lookup(store, ThresholdPolicy(0.8), lambda: embedder)
        self.admission = Admission(store, lambda: embedder)

    def find(self, request: Request, granted: Access | None = None) -> Match:
        return self.lookup.find(request, granted or per_user(request), MODEL)

    def answer(self, request: Request, text: str = "yes", finish_reason: str = "stop", **options: Any) -> None:
        """Pretend that the engine answered, and store it."""
        granted = options.get("granted") or per_user(request)
        request.state, request.answer, request.output_tokens = RequestState.FINISHED, text, [1, 2, 3]
        request.finish_reason = finish_reason
        match = self.find(request, granted)
        assert self.admission.store_answer(request, granted, match.identity, MODEL, match.vector, 5.0)
        num = request.num_prompt_tokens
        kv = PromptKV([span(request.prompt_tokens)], torch.arange(8.0), 1.0)
        assert kv.spans[0].num_tokens == num
        assert self.admission.store_kv(request, granted, MODEL, kv)


def span(tokens: Sequence[int]) -> KVSpan:
    keys = torch.tensor([float(t) for t in tokens]).reshape(1, 1, -1, 1).expand(2, 2, -1, 4).contiguous()
    return KVSpan(keys, -keys)


def per_user(request: Request) -> Access:
    return access("per_user", user=request.user, allow_global="own")


def asked(prompt: str, *, user: str = "os:1/ann", earlier: tuple[Message, ...] = (), **changed: Any) -> Request:
    sampling = changed.pop("sampling", Sampling(max_tokens=8))
    options = CacheOptions(**changed.pop("options", {}))
    text = "".join(m.content for m in earlier) + prompt
    return Request(
        id="r", user=user, model="m", messages=(*earlier, Message("user", prompt)), sampling=sampling,
        prompt_tokens=changed.pop("tokens", list(text.encode())), options=options, publish=lambda event: None,
    )  # fmt: skip


def told(match: Match) -> tuple[str, str]:
    return match.receipt.outcome.value, match.receipt.reason


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


def test_a_prompt_in_another_context_has_no_candidate_and_costs_no_embedding(cache: Cache) -> None:
    france, spain = (Message("user", "About France."),), (Message("user", "About Spain."),)
    cache.answer(asked("Why?", earlier=france), "because of wine")
    match = cache.find(asked("Why?", earlier=spain))
    assert told(match) == ("miss", "no_candidate")
    assert match.embed_ms is None
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
