"""`bitwise`: prompt logits are the same bits, cold or restored from disk, and answers are those of no cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semcache.config import Config
from semcache.daemon.build import load_engine
from semcache.daemon.cache.admit import Admission, PromptKV
from semcache.daemon.cache.lookup import Lookup, ModelKey
from semcache.daemon.cache.policy import OffPolicy
from semcache.daemon.cache.strategy import access
from semcache.daemon.engine.engine import Engine
from semcache.daemon.request import CacheMode, CacheOptions, Message, Outcome, Request, Sampling
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from tests.amount import IS_NIGHTLY
from tests.datasets import rows

LIMITS = StoreLimits(ram_bytes=0, disk_bytes=10**9)  # no RAM tier: everything is read back from its file
ACCESS = access("per_user", user="os:1", allow_global="own")


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """With as many threads as are asked for: more than one are slow where others use the processors too."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    engine = load_engine(Config(), lambda stage, share: None)
    yield engine
    engine.close()
    torch.set_num_threads(num_threads)


def model_key(engine: Engine) -> ModelKey:
    info = engine.info
    return ModelKey(info.name, info.folder_id, info.fingerprint, engine.numerics, engine.cuts, 64)


def request_of(engine: Engine, question: str, context: str | None, mode: CacheMode) -> Request:
    system = (Message("system", context),) if context else ()
    messages = (*system, Message("user", question))
    return Request(
        id=question, user="os:1", model="mini", messages=messages, prompt_tokens=engine.tokenizer.encode_chat(messages),
        sampling=Sampling(max_tokens=24), options=CacheOptions(mode=mode), publish=lambda event: None,
    )  # fmt: skip


def run(engine: Engine, request: Request, *, max_tokens: int = 24) -> tuple[torch.Tensor, list[int], PromptKV]:
    """Prompt logits, greedy answer and prompt KV of one request, computed by the engine."""
    restored, num_restored = list(request.restored), request.num_restored
    engine.begin(request)
    token = engine.prefill(request)
    while token is None:
        token = engine.prefill(request)
    logits = request.prompt_logits
    assert isinstance(logits, torch.Tensor)
    while token not in engine.info.eos_token_ids and len(request.output_tokens) < max_tokens:
        request.output_tokens.append(token)
        (token,) = engine.decode([request])
    spans = restored
    if num_restored < request.num_prompt_tokens:
        spans = [*spans, engine.kv(request, num_restored, request.num_prompt_tokens)]
    engine.release(request)
    return logits, list(request.output_tokens), PromptKV(spans, logits.clone(), 1.0)


def prompts() -> list[tuple[str, str | None]]:
    chosen: list[tuple[str, str | None]] = [(row["question"], None) for row in rows("trivia", "train")[::90]]
    chosen += [(row["question"], None) for row in rows("support", "train")[::25]]
    chosen += [(row["question"], row["context"]) for row in rows("class", "train")[::8]]
    chosen += [(row["question"], row["context"]) for row in rows("handbook", "train")[::10]]
    return chosen


def cuts(num_chunks: int, turn: int) -> list[int]:
    """How many chunks are restored: every number there is, or the most and another one, prompt by prompt in turn."""
    return list(range(num_chunks)) if IS_NIGHTLY else sorted({turn % num_chunks, num_chunks - 1})


@pytest.mark.parametrize(
    ("engine", "every", "least"), [(1, 1, 100), (2, 20, 6)], indirect=["engine"], ids=["one_thread", "two_threads"]
)
def test_logits_are_bit_identical_and_answers_are_those_of_no_cache(
    engine: Engine, every: int, least: int, tmp_path: Path
) -> None:
    """Cold, then from disk in a store opened afresh: whole-prompt records, shared prefixes and partial cuts."""
    model = model_key(engine)
    asked = prompts()[::every]
    assert len(asked) >= least
    cold = {}
    store = Store.open(tmp_path / "data", LIMITS)
    admission = Admission(store, lambda: None)
    for question, context in asked:
        request = request_of(engine, question, context, CacheMode.OFF)
        logits, answer, kv = run(engine, request)
        cold[question, context] = (logits, answer)
        assert admission.store_kv(request, ACCESS, model, kv)
    store.close()

    store = Store.open(tmp_path / "data", LIMITS)
    lookup = Lookup(store, OffPolicy(), lambda: None)
    num_partial = 0
    for turn, (question, context) in enumerate(asked):
        logits, answer = cold[question, context]
        request = request_of(engine, question, context, CacheMode.PREFIX)
        match = lookup.find(request, ACCESS, model)
        assert match.receipt.outcome is Outcome.PREFIX
        assert match.num_restored == request.num_prompt_tokens
        request.restored, request.num_restored = match.spans, match.num_restored
        request.prompt_logits = match.prompt_logits
        warm_logits, warm_answer, _ = run(engine, request)
        assert torch.equal(logits, warm_logits)
        assert answer == warm_answer
        # The same prompt cut at a chunk boundary: the rest is computed, and gives the same bits.
        blocks_per_chunk = model.cuts.every // model.block_tokens
        for num_chunks in cuts(-(-len(match.spans) // blocks_per_chunk), turn):
            num_blocks = num_chunks * blocks_per_chunk
            partial = request_of(engine, question, context, CacheMode.PREFIX)
            partial.restored = match.spans[:num_blocks]
            partial.num_restored = num_blocks * model.block_tokens
            partial_logits, partial_answer, _ = run(engine, partial, max_tokens=4)
            assert torch.equal(logits, partial_logits)
            assert answer[:4] == partial_answer
            num_partial += 1
    assert num_partial >= least
    assert store.counters()["damaged_blocks"] == 0
    store.close()
