"""`rounding` for five families of models in two precisions: cut at every token, decode-computed KV too, any machine.

Logits are close and greedy tokens the same but at ties; every divergence is printed with its margin.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from semcache.daemon.cache.admit import Admission, PromptKV
from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import Engine
from semcache.daemon.request import Request, Sampling
from semcache.store.store import Store
from tests.amount import IS_NIGHTLY
from tests.daemon.engine.conftest import (
    CHUNK_TOKENS,
    FAMILIES,
    assert_same_or_tied,
    loaded,
    model_folder,
    one_thread,
    random_prompt,
    request_for,
    start,
)
from tests.test_exactness_families import ACCESS, DISK, RAM, Loaded, find, key_of

__all__ = ["loaded", "model_folder", "one_thread"]  # fixtures

NUM_TOKENS = 2 * CHUNK_TOKENS + 7
NUM_ANSWER = 11
# Of how many tokens another prompt may share: both ends, and before, at, behind and between what ends a block (8) and a
# chunk (16). The rest is the same again.
CUTS = range(NUM_TOKENS) if IS_NIGHTLY else (0, 1, 7, 8, 9, 12, 15, 16, 17, 23, 25, 32, NUM_TOKENS - 2, NUM_TOKENS - 1)
# Of the largest logit, by how much one may differ: the last bits of float32, the last two of bfloat16 (8 bits).
CLOSE = {"float32": 1e-4, "bfloat16": 2**-6}


@pytest.fixture(params=[(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")], ids="-".join)
def engine(request: pytest.FixtureRequest, loaded: Loaded) -> Engine:
    return rounding(loaded, *request.param)


def rounding(loaded: Loaded, family: str = "llama", dtype: str = "float32", chunk_tokens: int = CHUNK_TOKENS) -> Engine:
    return Engine(loaded(family, dtype), num_slots=4, prefill_chunk_tokens=chunk_tokens, exactness="rounding")


def answered(engine: Engine, request: Request, num_tokens: int = NUM_ANSWER) -> tuple[Request, PromptKV]:
    """The answer by plain decode, and the KV of both."""
    start(engine, request)
    while len(request.output_tokens) < num_tokens:
        request.emit(engine.decode([request]), "")
    assert isinstance(request.prompt_logits, torch.Tensor)
    spans = [engine.kv(request, 0, engine.num_reusable(request))]
    engine.release(request)
    assert sum(span.num_tokens for span in spans) == request.num_prompt_tokens + num_tokens - 1, "the newest has none"
    return request, PromptKV(spans, request.prompt_logits, 1.0)


def keep(store: Store, engine: Engine, request: Request, kv: PromptKV) -> None:
    assert Admission(store, lambda: None).store_kv(request, ACCESS, key_of(engine), kv)


def warm(store: Store, engine: Engine, tokens: Sequence[int]) -> Request:
    """The prompt on what the store has of it."""
    match = find(store, engine, tokens)
    request = request_for(tokens, restored=list(match.spans), num_restored=match.num_restored)
    request.prompt_logits = match.prompt_logits
    return answered(engine, request)[0]


def assert_close(engine: Engine, ours: Request, theirs: Request) -> None:
    """Logits of the prompt's end, and the answers."""
    assert isinstance(ours.prompt_logits, torch.Tensor)
    assert isinstance(theirs.prompt_logits, torch.Tensor)
    scale = float(theirs.prompt_logits.abs().max())
    assert float((ours.prompt_logits - theirs.prompt_logits).abs().max()) <= CLOSE[engine.info.dtype] * scale
    assert_same_or_tied(engine, ours.prompt_tokens, ours.output_tokens, theirs.output_tokens)


@pytest.mark.parametrize("limits", [RAM, DISK], ids=["ram", "disk"])
def test_any_number_of_shared_tokens_is_restored(engine: Engine, tmp_path: Path, limits: object) -> None:
    rng = random.Random(1)
    stored = random_prompt(rng, NUM_TOKENS)
    asked = [([*stored[:cut], stored[cut] ^ 1, *random_prompt(rng, 5)], cut) for cut in CUTS]
    asked += [(stored[:cut], cut - 1) for cut in CUTS if cut]  # the last position's logits are not stored
    asked += [(stored, NUM_TOKENS)]
    expected = [answered(engine, request_for(tokens))[0] for tokens, _ in asked]
    store = Store.open(tmp_path, limits)
    keep(store, engine, *answered(engine, request_for(stored)))
    for (tokens, num_shared), cold in zip(asked, expected, strict=True):
        ours = warm(store, engine, tokens)
        assert ours.num_restored == num_shared
        # One pass for what is left, and one for each further token; none for a prompt that is there with its logits.
        assert ours.num_passes == -(-(len(tokens) - num_shared) // CHUNK_TOKENS) + NUM_ANSWER - 1
        assert_close(engine, ours, cold)
    assert store.counters()["damaged_blocks"] == 0
    store.close()


def test_the_next_turn_restores_prompt_and_answer_also_after_a_restart(engine: Engine, tmp_path: Path) -> None:
    rng = random.Random(4)
    conversation = random_prompt(rng, NUM_TOKENS)
    store = Store.open(tmp_path, DISK)
    for _ in range(4):
        previous, kv = answered(engine, request_for(conversation))
        keep(store, engine, previous, kv)
        store.close()
        store = Store.open(tmp_path, DISK)
        conversation = [*conversation, *previous.output_tokens, *random_prompt(rng, 5)]
        cold = answered(engine, request_for(conversation))[0]
        ours = warm(store, engine, conversation)
        assert ours.num_restored >= previous.num_prompt_tokens + NUM_ANSWER - 1
        assert_close(engine, ours, cold)
    store.close()


def half_accepted(engine: Engine, prompt: list[int]) -> tuple[Request, Request]:
    """A request whose draft went wrong in the middle, and what it should say."""
    expected, _ = answered(engine, request_for(prompt, Sampling(max_tokens=NUM_ANSWER)))
    draft = list(expected.output_tokens)
    draft[5] ^= 1
    request = start(engine, request_for(prompt, Sampling(max_tokens=NUM_ANSWER)))
    request.emit(engine.verify(request, Proposal(tuple(draft[1:10]), "donor", 1)).tokens, "")
    return request, expected


def test_what_lies_behind_a_rejected_draft_is_not_handed_over(engine: Engine, tmp_path: Path) -> None:
    for seed in range(5, 10):
        prompt = random_prompt(random.Random(seed), 20)
        request, expected = half_accepted(engine, prompt)
        if len(request.output_tokens) > 3:
            break
        engine.release(request)  # a near tie before the wrong token: nothing behind it is judged
    assert_same_or_tied(engine, prompt, request.output_tokens, expected.output_tokens[: len(request.output_tokens)])
    assert len(request.output_tokens) <= 6
    kv = engine.kv(request, request.num_prompt_tokens, engine.num_reusable(request))
    assert kv.num_tokens == len(request.output_tokens) - 1, "the model's own token behind the draft was not run"
    # An answer that ends within what was verified: as at a stop string.
    whole, num_output = list(request.output_tokens), 2
    request.output_tokens[:] = whole[:num_output]
    assert engine.kv(request, request.num_prompt_tokens, engine.num_reusable(request)).num_tokens == num_output
    request.output_tokens[:] = whole
    assert isinstance(request.prompt_logits, torch.Tensor)
    stored = PromptKV([engine.kv(request, 0, request.num_prompt_tokens), kv], request.prompt_logits, 1.0)
    engine.release(request)
    store = Store.open(tmp_path, RAM)
    keep(store, engine, request, stored)
    longer = [*prompt, *whole, 7, 7]
    ours = warm(store, engine, longer)
    assert ours.num_restored == len(prompt) + len(whole) - 1
    assert_close(engine, ours, answered(engine, request_for(longer))[0])
    store.close()


def test_kv_of_another_machine_is_met_in_rounding_alone(loaded: Loaded, tmp_path: Path) -> None:
    """Threads and chunk size stand for the machine; each mode writes into one store and meets only its own."""
    prompt = random_prompt(random.Random(6), NUM_TOKENS)
    store = Store.open(tmp_path, RAM)

    def engines(chunk_tokens: int) -> tuple[Engine, Engine]:
        bitwise = Engine(loaded("llama", "float32"), num_slots=1, prefill_chunk_tokens=chunk_tokens)
        return bitwise, rounding(loaded, chunk_tokens=chunk_tokens)

    here = engines(CHUNK_TOKENS)
    for engine in here:
        assert find(store, engine, prompt).num_restored == 0, "nothing of the other mode"
        request = start(engine, request_for(prompt))
        assert isinstance(request.prompt_logits, torch.Tensor)
        kv = engine.kv(request, 0, request.num_prompt_tokens)
        keep(store, engine, request, PromptKV([kv], request.prompt_logits, 1.0))
        engine.release(request)
        assert find(store, engine, prompt).num_restored == NUM_TOKENS
    num_threads = torch.get_num_threads()
    torch.set_num_threads(num_threads + 1)
    try:
        bitwise, other = engines(2 * CHUNK_TOKENS)
    finally:
        torch.set_num_threads(num_threads)
    assert bitwise.numerics != here[0].numerics
    assert find(store, bitwise, prompt).num_restored == 0
    assert find(store, other, prompt).num_restored == NUM_TOKENS
    longer = [*prompt[:-2], 5, 5, 5]
    assert find(store, other, longer).num_restored == NUM_TOKENS - 2
    assert_close(other, warm(store, other, longer), answered(other, request_for(longer))[0])
    assert find(store, rounding(loaded, dtype="bfloat16"), prompt).num_restored == 0, "other bytes"
    store.close()


def test_a_damaged_block_that_begins_alike_is_a_miss(loaded: Loaded, tmp_path: Path) -> None:
    engine = rounding(loaded)
    prompt = random_prompt(random.Random(8), NUM_TOKENS)
    store = Store.open(tmp_path, DISK)
    keep(store, engine, *answered(engine, request_for(prompt)))
    asked = [*prompt[:20], prompt[20] ^ 1, 3, 4]  # in the middle of the third block of eight
    assert find(store, engine, asked).num_restored == 20
    third = find(store, engine, prompt[:24])
    assert third.num_restored == 23
    store.close()
    [path] = [path for path in (tmp_path / "kv").rglob("*.safetensors") if holds(path, third.spans[-1].keys)]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    store = Store.open(tmp_path, DISK)
    ours = warm(store, engine, asked)
    assert ours.num_restored == 16
    assert store.counters()["damaged_blocks"] == 1
    assert_close(engine, ours, answered(engine, request_for(asked))[0])
    store.close()


def holds(path: Path, keys: torch.Tensor) -> bool:
    """Whether a file's first tensor begins with these keys' first row of every head."""
    from safetensors.torch import load_file

    stored = load_file(path)["keys"]
    return stored.shape[2] == 8 and torch.equal(stored[:, :, : keys.shape[2]], keys)
