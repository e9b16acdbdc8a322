"""The engine as a whole: the same tokens as `generate()`, and the same bits with and without restored KV."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import MAX_CHUNKS, Engine
from semcache.daemon.engine.kv import StepCache
from semcache.daemon.engine.llama import LlamaForward
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.request import Request, RequestState, Sampling
from semcache.errors import EngineError
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import (
    CHUNK_TOKENS,
    CONTEXT_TOKENS,
    FAMILIES,
    assert_equal_kv,
    assert_same_or_tied,
    generate,
    random_prompt,
    request_for,
    restored_request,
    start,
    stock_tokens,
)

DTYPES = ["float32", "bfloat16"]
Loaded = Callable[..., LoadedModel]


def make_engine(loaded: LoadedModel, num_slots: int = 4) -> Engine:
    return Engine(loaded, num_slots=num_slots, prefill_chunk_tokens=CHUNK_TOKENS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(loaded: Loaded, family: str, dtype: str) -> None:
    model, rng = loaded(family, dtype), random.Random(1)
    for num_prompt_tokens in (1, CHUNK_TOKENS, 53):
        prompt = random_prompt(rng, num_prompt_tokens)
        [ours] = generate(make_engine(model), [request_for(prompt)], 24)
        theirs = stock_tokens(model, prompt, 24)
        assert_same_or_tied(make_engine(model), prompt, ours, theirs)


def cold_and_warm(engine: Engine, prompt: list[int], num_restored: int) -> tuple[Request, Request]:
    cold = start(engine, request_for(prompt))
    whole = engine.kv(cold, 0, cold.num_prompt_tokens)
    cut = num_restored // 2
    spans = [whole.slice(0, cut), whole.slice(cut, num_restored)]
    warm = start(engine, restored_request(prompt, spans))
    assert torch.equal(cold.prompt_logits, warm.prompt_logits), (len(prompt), num_restored)
    assert cold.output_tokens == warm.output_tokens
    assert_equal_kv(engine.kv(warm, 0, warm.num_prompt_tokens), whole)
    engine.release(cold)
    engine.release(warm)
    return cold, warm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_warm_logits_are_bit_identical_at_every_chunk_boundary(loaded: Loaded, family: str, dtype: str) -> None:
    engine, prompt = make_engine(loaded(family, dtype)), random_prompt(random.Random(2), 5 * CHUNK_TOKENS + 7)
    for num_restored in range(0, len(prompt), CHUNK_TOKENS):
        cold_and_warm(engine, prompt, num_restored)


@pytest.mark.parametrize("dtype", DTYPES)
def test_warm_logits_are_bit_identical_for_random_prompts(loaded: Loaded, dtype: str) -> None:
    engine, rng = make_engine(loaded("llama", dtype)), random.Random(3)
    for _ in range(60):
        prompt = random_prompt(rng, rng.randrange(2, CONTEXT_TOKENS))
        cold_and_warm(engine, prompt, rng.randrange(0, len(prompt), CHUNK_TOKENS))


@pytest.mark.parametrize("num_prompt_tokens", [1, CHUNK_TOKENS, 3 * CHUNK_TOKENS, 3 * CHUNK_TOKENS + 5])
def test_a_full_record_needs_no_forward_and_goes_on_the_same(engine: Engine, num_prompt_tokens: int) -> None:
    prompt = random_prompt(random.Random(4), num_prompt_tokens)
    first = start(engine, request_for(prompt))
    kv, logits = engine.kv(first, 0, first.num_prompt_tokens), first.prompt_logits
    warm = restored_request(prompt, [kv], prompt_logits=logits)
    forwards = count_forwards(engine, lambda: start(engine, warm))
    assert forwards == 0
    for _ in range(10):
        for request in (first, warm):  # one at a time, so both run the same shapes
            request.emit(engine.decode([request]), "")
    assert warm.output_tokens == first.output_tokens


def test_the_first_token_of_a_full_record_does_not_wait_for_its_kv(engine: Engine) -> None:
    prompt = random_prompt(random.Random(4), 2 * CHUNK_TOKENS + 5)
    first = start(engine, request_for(prompt))
    kv, logits = engine.kv(first, 0, first.num_prompt_tokens), first.prompt_logits
    warm = restored_request(prompt, [kv], prompt_logits=logits)
    start(engine, warm)
    assert list(engine._to_restore) == [warm.slot]
    assert_equal_kv(engine.kv(warm, 0, warm.num_prompt_tokens), kv)
    assert not engine._to_restore
    again = start(engine, restored_request(prompt, [kv], prompt_logits=logits))
    engine.release(
        again
    )  # ended by its first token: nothing is copied, and nothing is left for the slot's next request
    assert not engine._to_restore
    other = request_for(random_prompt(random.Random(5), 5))
    cold, reused = start(engine, other), start(engine, request_for(other.prompt_tokens))
    assert_equal_kv(engine.kv(cold, 0, cold.num_prompt_tokens), engine.kv(reused, 0, reused.num_prompt_tokens))


def test_a_draft_behind_a_full_record_sees_its_kv(engine: Engine) -> None:
    prompt = random_prompt(random.Random(6), 2 * CHUNK_TOKENS + 5)
    first = start(engine, request_for(prompt))
    kv, logits = engine.kv(first, 0, first.num_prompt_tokens), first.prompt_logits
    for _ in range(8):
        first.emit(engine.decode([first]), "")
    warm = start(engine, restored_request(prompt, [kv], prompt_logits=logits))
    verified = engine.verify(warm, Proposal(tuple(first.output_tokens[1:9]), "donor", 1))
    assert verified.tokens[:8] == first.output_tokens[1:9]


def count_forwards(engine: Engine, work: Callable[[], object]) -> int:
    calls: list[object] = []
    forward = engine._forward

    class Counting:
        model = forward.model

        def __call__(self, *step: Any) -> Tensor | None:
            calls.append(step)
            return forward(*step)

    engine._forward = Counting()
    work()
    engine._forward = forward
    return len(calls)


@pytest.mark.parametrize("num_prompt_tokens", [CHUNK_TOKENS, 2 * CHUNK_TOKENS + 5])
def test_full_kv_without_logits_runs_the_last_chunk_again(engine: Engine, num_prompt_tokens: int) -> None:
    prompt = random_prompt(random.Random(5), num_prompt_tokens)
    cold = start(engine, request_for(prompt))
    warm = restored_request(prompt, [engine.kv(cold, 0, cold.num_prompt_tokens)])
    assert count_forwards(engine, lambda: start(engine, warm)) == 1
    assert torch.equal(warm.prompt_logits, cold.prompt_logits)


def test_in_rounding_full_kv_without_logits_runs_the_last_token_again(loaded: Loaded) -> None:
    engine = Engine(loaded(), num_slots=2, prefill_chunk_tokens=CHUNK_TOKENS, exactness="rounding")
    prompt = random_prompt(random.Random(5), 2 * CHUNK_TOKENS)
    cold = start(engine, request_for(prompt))
    warm = restored_request(prompt, [engine.kv(cold, 0, cold.num_prompt_tokens)])
    engine.begin(warm)
    assert warm.num_computed == len(prompt) - 1
    assert isinstance(engine.prefill(warm), int)
    assert torch.allclose(warm.prompt_logits, cold.prompt_logits, atol=1e-4)
    assert engine.reuses_answers


def test_in_rounding_a_chunk_is_full_wherever_it_begins(loaded: Loaded) -> None:
    engine = Engine(loaded(), num_slots=2, prefill_chunk_tokens=CHUNK_TOKENS, exactness="rounding")
    prompt = random_prompt(random.Random(5), 10 + CHUNK_TOKENS)
    cold = start(engine, request_for(prompt))
    warm = restored_request(prompt, [engine.kv(cold, 0, cold.num_prompt_tokens).slice(0, 10)])
    assert count_forwards(engine, lambda: start(engine, warm)) == 1
    assert warm.output_tokens == cold.output_tokens


def test_prefill_runs_one_chunk_at_a_time(engine: Engine) -> None:
    request = request_for(random_prompt(random.Random(6), 2 * CHUNK_TOKENS + 1))
    engine.begin(request)
    assert engine.prefill(request) is None
    assert request.num_computed == CHUNK_TOKENS
    assert engine.prefill(request) is None
    assert isinstance(engine.prefill(request), int)
    assert request.num_computed == request.num_prompt_tokens
    assert request.prompt_logits.shape == (engine.info.vocab_size,)
    assert request.prompt_logits.dtype == torch.float32
    assert not request.prompt_logits.is_inference()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_the_tokens_of_each_alone(loaded: Loaded, family: str) -> None:
    model, rng = loaded(family), random.Random(8)
    prompts = [random_prompt(rng, n) for n in (3, 60, 17, 128)]
    together = generate(make_engine(model), [request_for(prompt) for prompt in prompts], 20)
    for prompt, tokens in zip(prompts, together, strict=True):
        [alone] = generate(make_engine(model), [request_for(prompt)], 20)
        assert_same_or_tied(make_engine(model), prompt, tokens, alone)


def test_a_prefill_between_decode_steps_disturbs_nobody(loaded: Loaded) -> None:
    engine, rng = make_engine(loaded()), random.Random(9)
    prompt = random_prompt(rng, 30)
    [alone] = generate(engine, [request_for(prompt)], 12)
    request, other = start(engine, request_for(prompt)), request_for(random_prompt(rng, 6 * CHUNK_TOKENS))
    engine.begin(other)
    for step in range(11):
        if step < 6:
            engine.prefill(other)
        request.emit(engine.decode([request]), "")
    assert request.output_tokens == alone


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(engine: Engine) -> None:
    rng = random.Random(10)
    prompts = [random_prompt(rng, n) for n in (20, 33, 50)]
    sampling = [Sampling(temperature=0.8, top_p=0.95, top_k=40, seed=seed) for seed in (0, 1, 2**63)]
    together = generate(engine, [request_for(*pair) for pair in zip(prompts, sampling, strict=True)], 15)
    alone = [generate(engine, [request_for(*pair)], 15)[0] for pair in zip(prompts, sampling, strict=True)]
    assert together == alone


def test_without_a_seed_the_requests_own_noise_counts(engine: Engine) -> None:
    prompt = random_prompt(random.Random(11), 20)
    answers = [
        generate(engine, [request_for(prompt, Sampling(temperature=2.0, seed=seed), noise_seed=noise)], 10)[0]
        for seed, noise in ((None, 1), (None, 2), (None, 1), (5, 1), (5, 2))
    ]
    assert answers[0] == answers[2] != answers[1]
    assert answers[3] == answers[4]


def test_slots_are_taken_and_given_back(engine: Engine) -> None:
    requests = [request_for([1, 2, 3]) for _ in range(engine.num_slots)]
    for request in requests:
        engine.begin(request)
    assert engine.num_free_slots == 0
    with pytest.raises(EngineError, match="4 slots are taken"):
        engine.begin(request_for([1]))
    for request in requests:
        engine.release(request)
        engine.release(request)  # a second release is harmless
    assert engine.num_free_slots == engine.num_slots


def test_what_does_not_fit_is_refused_and_takes_no_slot(engine: Engine) -> None:
    kv = KVSpan(torch.zeros(2, 2, 4, 16), torch.zeros(2, 2, 4, 16))
    other = KVSpan(kv.keys.bfloat16(), kv.values.bfloat16())
    bad = {
        "0 tokens": request_for([]),
        f"{CONTEXT_TOKENS + 1} tokens": request_for([1] * (CONTEXT_TOKENS + 1)),
        "vocabulary of 272": request_for([1, 272]),
        "4 tokens were restored, 3 of 8": request_for([1] * 8, restored=[kv], num_restored=3),
        "4 tokens were restored, 4 of 2": restored_request([1] * 2, [kv]),
        "not of this model": restored_request([1] * 8, [other]),
        "not 272 float32": restored_request([1] * 4, [kv], prompt_logits=torch.zeros(272).bfloat16()),
    }
    for message, request in bad.items():
        with pytest.raises(EngineError, match=message):
            engine.begin(request)
    assert engine.num_free_slots == engine.num_slots


def test_the_context_can_be_filled_to_its_last_token_and_no_further(engine: Engine) -> None:
    request = start(engine, request_for(random_prompt(random.Random(12), CONTEXT_TOKENS - 2)))
    for _ in range(2):
        request.emit(engine.decode([request]), "")
    with pytest.raises(EngineError, match=f"context of {CONTEXT_TOKENS}"):
        engine.decode([request])


def test_close_frees_the_pool(loaded: Loaded) -> None:
    of_its_own = replace(loaded(), forward=LlamaForward(loaded().model))
    engine, kept = make_engine(of_its_own), weakref.ref(of_its_own.forward)
    del of_its_own
    engine.close()
    assert not hasattr(engine, "_pool")
    gc.collect()
    assert kept() is None, "nor does anything keep the weights"


_IN_PROCESSES_OF_THEIR_OWN = """
import hashlib, json, os, sys
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import load_model
from tests.daemon.engine.conftest import request_for, start

def tell():
    loaded = load_model("mini", device="cpu", dtype="float32", max_context_tokens=512, progress=lambda *_: None)
    engine = Engine(loaded, num_slots=1, prefill_chunk_tokens=128)
    request = start(engine, request_for([i * 7 % 1000 for i in range(200)]))
    bits = hashlib.sha256(engine.kv(request, 0, request.num_prompt_tokens).keys.numpy().tobytes()).hexdigest()
    print(json.dumps([engine.numerics, bits]), flush=True)

# Libraries read their settings when they first compute. A fork that has not yet is a new process without the imports.
for settings in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ.update(settings)
        tell()
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_numerics_tell_processes_apart_that_compute_other_bits() -> None:
    """A library setting that changes kernels is in no list of ours."""
    settings: list[dict[str, str]] = [{}, {}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"MKL_CBWR": "COMPATIBLE"}]
    done = subprocess.run(
        [sys.executable, "-c", _IN_PROCESSES_OF_THEIR_OWN, json.dumps(settings)], capture_output=True, text=True,
        check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    (numerics, bits), again, *others = (json.loads(line) for line in done.stdout.splitlines())
    assert again == [numerics, bits]
    assert len(others) == 2
    for other_numerics, other_bits in others:
        assert (other_numerics == numerics) == (other_bits == bits)


@pytest.mark.parametrize(
    ("state", "is_through", "num_kept"),
    [
        (RequestState.CANCELLED, False, 2 * CHUNK_TOKENS),
        (RequestState.CANCELLED, True, 4 * CHUNK_TOKENS + 5),
        (RequestState.FAILED, False, 0),
        (RequestState.FAILED, True, 0),
    ],
)
def test_what_is_known_to_be_numbers_is_not_cleared(
    engine: Engine, state: RequestState, is_through: bool, num_kept: int
) -> None:
    prompt = random_prompt(random.Random(13), 4 * CHUNK_TOKENS + 5)
    kv = engine.kv(start(engine, request_for(prompt)), 0, len(prompt))
    request = restored_request(prompt, [kv.slice(0, 2 * CHUNK_TOKENS)])
    if is_through:
        start(engine, request)
    else:
        engine.begin(request)
        engine.prefill(request)
    pool, slot, num_computed = engine._pool, request.slot, request.num_computed
    assert slot is not None
    for tensor in (*pool.keys, *pool.values):
        tensor[slot, :, num_computed : num_computed + CHUNK_TOKENS] = float("nan")  # as a draft may
    request.state = state
    engine.release(request)
    left = pool.snapshot(slot, 0, CONTEXT_TOKENS)
    assert_equal_kv(left.slice(0, num_kept), kv.slice(0, num_kept))
    behind = left.slice(num_kept, CONTEXT_TOKENS)
    assert not behind.keys.any()
    assert not behind.values.any()


def test_a_wide_pass_that_failed_leaves_nothing_behind(loaded: Loaded) -> None:
    """What it wrote may be no numbers, and another row's padding would read them."""
    engine = make_engine(loaded(), num_slots=1)
    pool, width = engine._pool, engine.max_chunks

    class Failing:
        model = engine._forward.model

        def __call__(self, tokens: Tensor, cache: StepCache, num_logits: int) -> None:
            for tensor in (*pool.keys, *pool.values):
                tensor[0, :, : tokens.shape[1]] = float("nan")
            raise RuntimeError("no memory")

    request = request_for(random_prompt(random.Random(1), width * CHUNK_TOKENS))
    engine.begin(request)
    engine._forward = Failing()
    with pytest.raises(RuntimeError):
        engine.prefill(request, max_chunks=MAX_CHUNKS)
    engine.release(request)
    assert all(tensor.isfinite().all() for tensor in (*pool.keys, *pool.values))
