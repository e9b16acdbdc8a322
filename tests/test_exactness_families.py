"""Exact reuse for five families of models in two precisions, through the store's RAM and disk, cut at every boundary.

Prompts: KV and logits are the same bits. Across shapes (batches, drafts): the same tokens but at ties, and every
divergence is printed with its margin.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from semcache.daemon.cache.admit import Admission, PromptKV
from semcache.daemon.cache.lookup import Lookup, Match, ModelKey
from semcache.daemon.cache.policy import OffPolicy
from semcache.daemon.cache.strategy import access
from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.request import Request, Sampling
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import (
    CHUNK_TOKENS,
    FAMILIES,
    assert_same_or_tied,
    generate,
    loaded,
    model_folder,
    one_thread,
    random_prompt,
    request_for,
    start,
)

__all__ = ["loaded", "model_folder", "one_thread"]  # fixtures

ACCESS = access("per_user", user="os:1", allow_global="own")
BLOCK_TOKENS = CHUNK_TOKENS // 2
NUM_TOKENS = 2 * CHUNK_TOKENS + 7
RAM = StoreLimits(ram_bytes=10**9, disk_bytes=10**9)
DISK = StoreLimits(ram_bytes=0, disk_bytes=10**9)  # nothing stays in RAM: all is read back from its file
Loaded = Callable[..., LoadedModel]


@pytest.fixture(params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")], ids="-".join)
def engine(request: pytest.FixtureRequest, loaded: Loaded) -> Engine:
    return Engine(loaded(*request.param), num_slots=4, prefill_chunk_tokens=CHUNK_TOKENS)


def prompts() -> Iterator[tuple[list[int], int]]:
    """The stored prompt, its beginnings and other prompts that begin like it, with how many tokens they share."""
    rng = random.Random(1)
    stored = random_prompt(rng, NUM_TOKENS)
    yield stored, NUM_TOKENS
    for boundary in range(CHUNK_TOKENS, NUM_TOKENS, CHUNK_TOKENS):
        for num_shared in (boundary - 1, boundary, boundary + 1):
            yield stored[:num_shared], num_shared  # shorter than what is cached
            yield [*stored[:num_shared], 255 - stored[num_shared], *random_prompt(rng, 9)], num_shared


def find(store: Store, engine: Engine, tokens: Sequence[int]) -> Match:
    return Lookup(store, OffPolicy(), lambda: None).find(request_for(tokens), ACCESS, key_of(engine))


def key_of(engine: Engine) -> ModelKey:
    info = engine.info
    return ModelKey(info.name, info.folder_id, info.fingerprint, engine.numerics, engine.cuts, BLOCK_TOKENS)


def cold(engine: Engine, tokens: Sequence[int]) -> tuple[Request, KVSpan]:
    request = start(engine, request_for(tokens))
    kv = engine.kv(request, 0, request.num_prompt_tokens)
    engine.release(request)
    return request, kv


def assert_same_bits(engine: Engine, tokens: Sequence[int], match: Match, expected: Request, kv: KVSpan) -> int:
    """Run the prompt on what was restored; returns how many forwards that took."""
    request = request_for(tokens, restored=list(match.spans), num_restored=match.num_restored)
    request.prompt_logits = match.prompt_logits
    start(engine, request)
    ours = engine.kv(request, 0, request.num_prompt_tokens)
    engine.release(request)
    assert torch.equal(request.prompt_logits, expected.prompt_logits)
    assert request.output_tokens == expected.output_tokens
    assert torch.equal(ours.keys, kv.keys)
    assert torch.equal(ours.values, kv.values)
    return request.num_passes


def test_kv_and_logits_are_the_same_bits_from_every_tier_at_every_boundary(engine: Engine, tmp_path: Path) -> None:
    asked = [(tokens, num_shared, *cold(engine, tokens)) for tokens, num_shared in prompts()]
    _, _, request, kv = asked[0]

    def check(store: Store) -> None:
        for tokens, num_shared, expected, cold_kv in asked:
            match = find(store, engine, tokens)
            if len(tokens) == NUM_TOKENS == num_shared:
                assert match.num_restored == NUM_TOKENS
                assert assert_same_bits(engine, tokens, match, expected, cold_kv) == 0
            else:
                # Of a prompt that ends where a chunk does, the last chunk or its end runs for the logits.
                assert match.num_restored == engine.cuts.start(min(num_shared, len(tokens)), len(tokens))
                assert assert_same_bits(engine, tokens, match, expected, cold_kv) >= 1

    for name, limits in (("ram", RAM), ("disk", DISK)):
        store = Store.open(tmp_path / name, limits)
        assert request.prompt_logits is not None
        admission = Admission(store, lambda: None)
        assert admission.store_kv(request, ACCESS, key_of(engine), PromptKV([kv], request.prompt_logits, 1.0))
        check(store)
        store.close()
    store = Store.open(tmp_path / "disk", DISK)
    check(store)
    assert store.counters()["damaged_blocks"] == 0
    store.close()


def drafted(engine: Engine, prompt: Sequence[int], draft: Sequence[int]) -> list[int]:
    """The answer with a draft behind every step; a tie leaves one token to plain decode."""
    request = start(engine, request_for(prompt, Sampling(max_tokens=len(draft))))
    is_tied = False
    while (num_output := len(request.output_tokens)) < len(draft):
        if is_tied or num_output == len(draft) - 1:
            request.emit(engine.decode([request]), "")
            is_tied = False
        else:
            room = engine.room(request)
            verified = engine.verify(request, Proposal(tuple(draft[num_output:][:room]), "donor", num_output))
            request.emit(verified.tokens, "")
            is_tied = verified.is_tied
    engine.release(request)
    return request.output_tokens


def test_batches_and_drafts_give_the_tokens_of_each_alone_but_at_ties(engine: Engine) -> None:
    rng = random.Random(2)
    asked = [random_prompt(rng, n) for n in (3, 60, 17, 33)]
    alone = [generate(engine, [request_for(prompt)], 20)[0] for prompt in asked]
    together = generate(engine, [request_for(prompt) for prompt in asked], 20)
    for prompt, expected, batched in zip(asked, alone, together, strict=True):
        assert_same_or_tied(engine, prompt, batched, expected)
        for num_wrong in (0, 2, 20):
            draft = list(expected)
            for i in rng.sample(range(20), num_wrong):
                draft[i] ^= 1
            assert_same_or_tied(engine, prompt, drafted(engine, prompt, draft), expected)


def test_a_divergence_above_the_margin_fails(engine: Engine) -> None:
    prompt = random_prompt(random.Random(3), 20)
    [answer] = generate(engine, [request_for(prompt)], 4)
    request, _ = cold(engine, [*prompt, *answer[:2]])
    other = int(request.prompt_logits.argmin())
    with pytest.raises(AssertionError):
        assert_same_or_tied(engine, prompt, [*answer[:2], other, answer[3]], answer)
