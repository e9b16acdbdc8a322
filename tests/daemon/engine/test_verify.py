"""What one pass over a draft accepts, where it stops, and that it leaves the slot as decode would find it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.sampler import SampleKey
from semcache.daemon.engine.verify import TIE_MARGINS, Verified, judge, regrets
from semcache.daemon.request import Donor, Request, Sampling
from tests.daemon.engine.conftest import (
    CHUNK_TOKENS,
    CONTEXT_TOKENS,
    generate,
    load,
    random_prompt,
    request_for,
    start,
)

RESERVED = 270  # in the vocabulary, and no byte
GREEDY = [SampleKey(Sampling(), 0, position) for position in range(10)]


def logits_for(tokens: list[int], margin: float = 5.0) -> torch.Tensor:
    logits = torch.zeros(len(tokens), 8)
    logits[range(len(tokens)), tokens] = margin
    return logits


def test_everything_right_gives_one_token_more() -> None:
    assert judge(logits_for([3, 4, 5]), [3, 4], GREEDY[:3], 0.1) == Verified([3, 4, 5], 2, is_tied=False)


def test_the_first_mismatch_gives_the_models_own_token() -> None:
    assert judge(logits_for([3, 4, 5]), [3, 6], GREEDY[:3], 0.1) == Verified([3, 4], 1, is_tied=False)
    assert judge(logits_for([3, 4, 5]), [7, 4], GREEDY[:3], 0.1) == Verified([3], 0, is_tied=False)


def test_without_a_row_behind_it_the_last_token_is_judged_all_the_same() -> None:
    assert judge(logits_for([3, 4]), [3, 4], GREEDY[:2], 0.1) == Verified([3, 4], 2, is_tied=False)


def test_a_tie_stops_before_it_whether_the_token_is_right_or_wrong() -> None:
    logits = logits_for([3, 4, 5])
    logits[1, 6] = 4.95
    for second in (4, 6, 2):
        assert judge(logits, [3, second], GREEDY[:3], 0.1) == Verified([3], 1, is_tied=True)
    logits[0, 6] = 4.95
    assert judge(logits, [3, 4], GREEDY[:3], 0.1) == Verified([], 0, is_tied=True)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_left_to_plain_decode(number: float) -> None:
    logits = logits_for([3, 4, 5])
    logits[1:, 2] = number
    assert judge(logits, [3, 4], GREEDY[:3], 0.1) == Verified([3], 1, is_tied=True)
    assert judge(logits, [7, 4], GREEDY[:3], 0.1) == Verified([3], 0, is_tied=False), "of no account"


def test_regret_is_the_distance_to_the_likeliest_in_nats() -> None:
    logits = torch.randn(3, 50)
    drafted = [7, 11, int(logits[2].argmax())]
    best = logits.log_softmax(-1).max(-1).values
    expected = [float(best[row] - logits.log_softmax(-1)[row, token]) for row, token in enumerate(drafted)]
    assert regrets(logits, drafted) == pytest.approx(expected, abs=1e-5)
    assert regrets(logits, drafted)[2] == 0.0
    assert len(regrets(logits[:2], drafted)) == 2


def offered(tokens: list[int], start_at: int = 1) -> Proposal:
    return Proposal(tuple(tokens), "donor", start_at)


def plain(engine: Engine, prompt: list[int], num_tokens: int) -> list[int]:
    return generate(engine, [request_for(prompt)], num_tokens)[0]


def verify_all(engine: Engine, request: Request, tokens: list[int]) -> Verified:
    verified = engine.verify(request, offered(tokens))
    request.emit(verified.tokens, "")
    return verified


def test_decode_goes_on_behind_accepted_and_rejected_tokens(engine: Engine) -> None:
    """The KV of what was rejected is overwritten, that of what was accepted stays."""
    prompt = random_prompt(random.Random(1), 21)
    expected = plain(engine, prompt, 30)
    request = start(engine, request_for(prompt))
    wrong = [*expected[1:6], (expected[6] + 1) % 256, *expected[7:12]]
    assert verify_all(engine, request, wrong) == Verified(expected[1:7], 5, is_tied=False)
    for _ in range(3):
        request.emit(engine.decode([request]), "")
    assert verify_all(engine, request, expected[10:14]).num_accepted == 4
    while len(request.output_tokens) < 30:
        request.emit(engine.decode([request]), "")
    assert request.output_tokens == expected
    assert request.num_passes == 2 + 2 + 3 + (30 - 15)


def test_an_accepted_draft_leaves_the_kv_that_decode_computes(engine: Engine) -> None:
    prompt = random_prompt(random.Random(2), 30)
    decoded, drafted = start(engine, request_for(prompt)), start(engine, request_for(prompt))
    for _ in range(10):
        decoded.emit(engine.decode([decoded]), "")
    verify_all(engine, drafted, decoded.output_tokens[1:10])
    assert drafted.output_tokens == decoded.output_tokens
    assert drafted.num_computed == decoded.num_computed
    assert drafted.slot is not None
    assert decoded.slot is not None
    ours = engine._pool.snapshot(drafted.slot, 0, drafted.num_computed)
    theirs = engine._pool.snapshot(decoded.slot, 0, decoded.num_computed)
    assert torch.equal(ours.slice(0, 30).keys, theirs.slice(0, 30).keys)
    assert torch.allclose(ours.keys, theirs.keys, atol=1e-4)
    assert torch.allclose(ours.values, theirs.values, atol=1e-4)


def test_a_drafted_token_without_numbers_changes_nothing(model_folder: Callable[[str], Path]) -> None:
    """As an untrained reserved token may have; another row's padding would read its KV."""
    model = load(model_folder("llama"))
    embedding: Any = model.model.get_input_embeddings()
    embedding.weight[RESERVED] = math.nan
    engine = Engine(model, num_slots=4, prefill_chunk_tokens=CHUNK_TOKENS)
    prompt = random_prompt(random.Random(2), 30)
    expected = plain(engine, prompt, 12)
    donor = Donor((*expected[:4], RESERVED, 5, 6), has_ended=False)
    request = start(engine, request_for(prompt, donor=donor))
    verified = verify_all(engine, request, list(donor.tokens[1:]))
    assert verified.tokens == expected[1 : 1 + len(verified.tokens)]
    assert all(tensor.isfinite().all() for tensor in (*engine._pool.keys, *engine._pool.values))
    assert request.donor_regret is None
    while len(request.output_tokens) < 12:
        request.emit(engine.decode([request]), "")
    assert request.output_tokens == expected


def test_verification_disturbs_no_other_row(engine: Engine) -> None:
    rng = random.Random(3)
    prompts = [random_prompt(rng, n) for n in (20, 33)]
    other, request = (start(engine, request_for(prompt)) for prompt in prompts)
    assert other.slot is not None
    before = engine._pool.snapshot(other.slot, 0, other.num_computed)
    verify_all(engine, request, random_prompt(rng, 12))
    after = engine._pool.snapshot(other.slot, 0, other.num_computed)
    assert torch.equal(before.keys, after.keys)
    assert torch.equal(before.values, after.values)


def test_room_ends_with_the_answer_the_context_and_the_chunk(engine: Engine) -> None:
    prompt = random_prompt(random.Random(4), 40)
    request = start(engine, request_for(prompt, Sampling(max_tokens=9)))
    assert engine.room(request) == 8
    request.sampling = Sampling(max_tokens=1000)
    assert engine.room(request) == CHUNK_TOKENS
    request = start(engine, request_for(random_prompt(random.Random(4), CONTEXT_TOKENS - 3), Sampling(max_tokens=99)))
    assert engine.room(request) == 2
    assert len(engine.verify(request, offered([1, 2])).tokens) <= 2


def test_a_draft_that_fills_the_room_needs_no_row_for_its_last_token(engine: Engine) -> None:
    prompt = random_prompt(random.Random(5), 20)
    expected = plain(engine, prompt, 8)
    request = start(engine, request_for(prompt, Sampling(max_tokens=8)))
    assert verify_all(engine, request, expected[1:]) == Verified(expected[1:], 7, is_tied=False)
    assert request.num_computed == request.num_prompt_tokens + 7  # the newest token's own KV is not there yet


def test_the_donors_first_token_is_judged_without_a_pass(engine: Engine) -> None:
    prompt = random_prompt(random.Random(6), 20)
    [first, *_] = plain(engine, prompt, 1)
    right = start(engine, request_for(prompt, donor=Donor((first, 9), has_ended=False)))
    assert (right.num_drafted, right.num_draft_accepted, right.donor_regret) == (1, 1, 0.0)
    wrong = start(engine, request_for(prompt, donor=Donor((first ^ 1, 9), has_ended=False)))
    assert (wrong.num_drafted, wrong.num_draft_accepted) == (1, 0)
    assert wrong.donor_regret is not None
    assert wrong.donor_regret > 0
    assert right.num_passes == wrong.num_passes == start(engine, request_for(prompt)).num_passes


def test_regret_is_taken_over_the_whole_donor_and_its_end_once(engine: Engine) -> None:
    prompt = random_prompt(random.Random(7), 20)
    expected = plain(engine, prompt, 6)

    def regret(tokens: list[int], *, has_ended: bool) -> float:
        request = start(engine, request_for(prompt, donor=Donor(tuple(tokens), has_ended)))
        verify_all(engine, request, tokens[1:])
        first = request.donor_regret
        verify_all(engine, request, [1, 2, 3])
        assert request.donor_regret == first
        assert first is not None
        engine.release(request)
        return first

    assert regret(expected, has_ended=False) == 0.0
    assert regret(expected, has_ended=True) > 0.0  # the model would have gone on
    off = regret([*expected[:3], expected[3] ^ 1, *expected[4:]], has_ended=False)
    assert off > 0.0
    request = start(engine, request_for([*prompt, *expected[:3]]))
    gap = regrets(request.prompt_logits[None], [expected[3] ^ 1])[0]
    assert off >= gap / 6 - 1e-4  # a mean over six tokens


def test_the_tie_margin_follows_the_dtype_unless_it_is_set(loaded: Callable[..., LoadedModel]) -> None:
    for dtype in ("float32", "bfloat16"):
        model = loaded("llama", dtype)
        assert Engine(model, num_slots=1, prefill_chunk_tokens=16).tie_margin == TIE_MARGINS[dtype]
        assert Engine(model, num_slots=1, prefill_chunk_tokens=16, tie_margin=0.5).tie_margin == 0.5
