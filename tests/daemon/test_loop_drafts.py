"""Drafts on the engine thread: the answer of no draft in fewer passes, and a receipt that says what was used."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.draft import clearness
from semcache.daemon.cache.admit import PromptKV, cut
from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.sampler import SampleKey
from semcache.daemon.engine.verify import Verified
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import (
    CacheMode,
    CacheOptions,
    Donor,
    End,
    Event,
    Message,
    Outcome,
    Receipt,
    Request,
    RequestState,
    Sampling,
    Token,
)
from semcache.store.tensors import KVSpan
from tests.daemon.engine.conftest import load, random_prompt, save_model

TIMEOUT_S = 60
CHUNK_TOKENS = 64
ANSWER_TOKENS = 60
GREEDY = Sampling(max_tokens=ANSWER_TOKENS)
SAMPLED = Sampling(temperature=0.8, seed=5, max_tokens=ANSWER_TOKENS)
FILTERED = Sampling(temperature=0.8, seed=6, top_k=40, top_p=0.9, max_tokens=ANSWER_TOKENS)
SAMPLINGS = {"greedy": GREEDY, "sampled": SAMPLED, "filtered": FILTERED}


class GatedEngine(Engine):
    """Waits before a verification for as long as `gate` is closed, and says that it is there."""

    def __init__(self, loaded: LoadedModel, *, tie_margin: float = 0.0) -> None:
        super().__init__(loaded, num_slots=4, prefill_chunk_tokens=CHUNK_TOKENS, tie_margin=tie_margin)
        self.gate = threading.Event()
        self.gate.set()
        self.is_verifying = threading.Event()

    def verify(self, request: Request, proposal: Proposal) -> Verified:
        self.is_verifying.set()
        assert self.gate.wait(TIMEOUT_S)
        return super().verify(request, proposal)


class Arm:
    """One engine thread and what can be asked of it."""

    def __init__(self, loaded: LoadedModel, *, drafts: bool, tie_margin: float = 0.0) -> None:
        self.engine = GatedEngine(loaded, tie_margin=tie_margin)
        self.loop = EngineLoop(lambda progress: self.engine, drafts=drafts)
        self.loop.start()

    def submit(self, prompt: Sequence[int], sampling: Sampling, **fields: Any) -> Asked:
        return Asked(self.loop, prompt, sampling, **fields)

    def ask(self, prompt: Sequence[int], sampling: Sampling = GREEDY, **fields: Any) -> Request:
        asked = self.submit(prompt, sampling, **fields)
        assert asked.end().state is RequestState.FINISHED
        return asked.request


class Asked:
    """A submitted request with its events and what was handed over."""

    def __init__(
        self, loop: EngineLoop, prompt: Sequence[int], sampling: Sampling, *, mode: CacheMode = CacheMode.AUTO,
        user: str = "os:1", **fields: Any,
    ) -> None:  # fmt: skip
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.handed: queue.SimpleQueue[PromptKV | None] = queue.SimpleQueue()
        self.request = Request(
            id=f"r{id(self)}", user=user, model="m", messages=(Message("user", "?"),), prompt_tokens=tuple(prompt),
            sampling=sampling, options=CacheOptions(mode=mode), publish=self._publish, **fields,
        )  # fmt: skip
        self.request.receipt = self.request.receipt or Receipt(Outcome.MISS, "empty", "per_user")
        self.receipt_at_end: Receipt | None = None
        loop.submit(self.request, lambda _request, kv: self.handed.put(kv), loop.served)

    def _publish(self, event: Event) -> None:
        if isinstance(event, End):
            self.receipt_at_end = self.request.receipt
        self.events.put(event)

    def end(self) -> End:
        while not isinstance(event := self.events.get(timeout=TIMEOUT_S), End):
            pass
        return event

    def text(self) -> str:
        """The streamed text up to the end."""
        text = ""
        while not isinstance(event := self.events.get(timeout=TIMEOUT_S), End):
            text += event.text if isinstance(event, Token) else ""
        return text

    def kv(self) -> PromptKV:
        kv = self.handed.get(timeout=TIMEOUT_S)
        assert kv is not None
        return kv


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, and on a busy machine waiting for them takes long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(folder)


@pytest.fixture(scope="module")
def model_in_bfloat16(folder: Path) -> LoadedModel:
    return load(folder, "bfloat16")


@pytest.fixture(scope="module")
def make_arm(model: LoadedModel) -> Iterator[Callable[..., Arm]]:
    arms: list[Arm] = []

    def make(*, loaded: LoadedModel = model, **options: Any) -> Arm:
        arms.append(Arm(loaded, **options))
        return arms[-1]

    yield make
    for arm in arms:
        arm.engine.gate.set()
        arm.loop.stop(TIMEOUT_S)


@pytest.fixture(scope="module")
def plain(make_arm: Callable[..., Arm]) -> Arm:
    return make_arm(drafts=False)


@pytest.fixture(scope="module")
def drafts(make_arm: Callable[..., Arm]) -> Arm:
    return make_arm(drafts=True)


def prompt_of(seed: int, num_tokens: int = 21) -> list[int]:
    return random_prompt(random.Random(seed), num_tokens)


def donor_of(tokens: Sequence[int], *, has_ended: bool = False) -> Donor:
    return Donor(tuple(tokens), has_ended)


def replaced(tokens: Sequence[int], *places: int) -> list[int]:
    return [token ^ 1 if i in places else token for i, token in enumerate(tokens)]


def assert_same_or_tied(plain: Arm, theirs: Request, ours: Request) -> None:
    """Equal tokens; a divergence is printed and allowed only where the choice is not clear at the tie margin."""
    if ours.output_tokens == theirs.output_tokens:
        assert ours.answer == theirs.answer
        assert ours.finish_reason == theirs.finish_reason
        return
    pairs = zip(ours.output_tokens, theirs.output_tokens, strict=False)
    at = next(i for i, (mine, other) in enumerate(pairs) if mine != other)
    sampling = theirs.sampling
    prefix = plain.ask([*theirs.prompt_tokens, *theirs.output_tokens[:at]], Sampling(max_tokens=1))
    assert isinstance(prefix.prompt_logits, torch.Tensor)
    key = SampleKey(sampling, sampling.seed or 0, theirs.num_prompt_tokens + at)
    margin = clearness(prefix.prompt_logits, key)
    print(f"divergence at token {at} of {sampling}: margin {margin:.2g}")
    assert margin <= plain.engine.tie_margin


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_donor_gives_the_tokens_of_none(plain: Arm, drafts: Arm, seed: int, sampling: Sampling) -> None:
    prompt, rng = prompt_of(seed), random.Random(seed)
    expected = plain.ask(prompt, sampling)
    own = expected.output_tokens
    longer = plain.ask(prompt, Sampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, 90))
    other = plain.ask(prompt_of(seed + 100), sampling).output_tokens
    donors = {
        "own": donor_of(own),
        "own and an end that does not come": donor_of(own[:-5], has_ended=True),
        "two replaced": donor_of(replaced(own, *rng.sample(range(len(own)), 2))),
        "ten replaced": donor_of(replaced(own, *rng.sample(range(len(own)), 10))),
        "garbage": donor_of(random_prompt(rng, 60)),
        "longer than the limit": donor_of(longer.output_tokens, has_ended=True),
        "begins as another": donor_of([*other[:30], *own[30:]]),
        "ends as another": donor_of([*own[:30], *other[30:]]),
        "tokens of another vocabulary": donor_of([*own[:20], 100_000, *own[21:]]),
        "nothing": donor_of([]),
    }
    for name, donor in donors.items():
        ours = drafts.ask(prompt, sampling, donor=donor)
        assert_same_or_tied(plain, expected, ours)
        assert ours.num_draft_accepted <= min(ours.num_drafted, len(ours.output_tokens)), name
        assert ours.num_passes <= expected.num_passes + 3, name


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_bfloat16_differs_only_at_ties(
    make_arm: Callable[..., Arm], model_in_bfloat16: LoadedModel, sampling: Sampling
) -> None:
    plain, drafts = (make_arm(drafts=allowed, loaded=model_in_bfloat16) for allowed in (False, True))
    for seed in range(4):
        prompt = prompt_of(seed)
        expected = plain.ask(prompt, sampling)
        for donor in (expected.output_tokens, replaced(expected.output_tokens, 11, 40)):
            ours = drafts.ask(prompt, sampling, donor=donor_of(donor))
            assert_same_or_tied(plain, expected, ours)
            assert ours.num_draft_accepted > 0


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_right_donor_is_two_passes(plain: Arm, drafts: Arm, sampling: Sampling) -> None:
    prompt = prompt_of(4)
    expected = plain.ask(prompt, sampling)
    ours = drafts.ask(prompt, sampling, donor=donor_of(expected.output_tokens))
    assert ours.output_tokens == expected.output_tokens
    num_tokens = len(expected.output_tokens)
    assert expected.num_passes == num_tokens + (expected.finish_reason == "stop")
    assert ours.num_passes <= 2 + 2  # prompt, draft; two more where sampling came close to a tie
    assert ours.num_draft_accepted == num_tokens
    assert ours.receipt is not None
    assert ours.receipt.outcome is Outcome.DRAFT
    assert (ours.receipt.draft_tokens, ours.receipt.draft_accepted) == (ours.num_drafted, num_tokens)


def test_a_useless_donor_costs_no_pass(plain: Arm, drafts: Arm) -> None:
    prompt = prompt_of(5)
    without = drafts.ask(prompt)
    never_said = sorted(set(range(256)) - set(without.output_tokens))
    ours = drafts.ask(prompt, donor=donor_of((never_said * 2)[:ANSWER_TOKENS], has_ended=True))
    assert ours.num_passes == without.num_passes
    assert ours.output_tokens == without.output_tokens
    assert (ours.num_drafted, ours.num_draft_accepted) == (1, 0)
    assert ours.donor_regret is not None
    assert ours.donor_regret > 0
    assert ours.receipt is not None
    assert ours.receipt.outcome is Outcome.MISS
    assert without.num_passes <= plain.ask(prompt).num_passes == ANSWER_TOKENS


def test_with_a_huge_tie_margin_plain_decode_does_everything(make_arm: Callable[..., Arm], plain: Arm) -> None:
    careful, prompt = make_arm(drafts=True, tie_margin=1e9), prompt_of(6)
    expected = plain.ask(prompt)
    ours = careful.ask(prompt, donor=donor_of(expected.output_tokens, has_ended=True))
    assert ours.output_tokens == expected.output_tokens  # decode steps of the same shapes: no divergence is possible
    assert ours.num_draft_accepted == 1  # the first token is the prompt's own
    assert expected.num_passes < ours.num_passes <= expected.num_passes + 5
    assert ours.receipt is not None
    assert ours.receipt.outcome is Outcome.MISS


def test_the_end_of_the_donor_is_the_end_of_the_answer(
    make_arm: Callable[..., Arm], model: LoadedModel, plain: Arm
) -> None:
    prompt = prompt_of(17)
    whole = plain.ask(prompt).output_tokens
    end = next(token for i, token in enumerate(whole) if i >= 10 and token not in whole[:i])
    ends = replace(model, info=replace(model.info, eos_token_ids=(end, 257)))
    expected = make_arm(drafts=False, loaded=ends).ask(prompt)
    assert (expected.output_tokens, expected.finish_reason) == (whole[: whole.index(end)], "stop")
    drafts = make_arm(drafts=True, loaded=ends)
    ours = drafts.ask(prompt, donor=donor_of(expected.output_tokens, has_ended=True))
    assert (ours.output_tokens, ours.finish_reason) == (expected.output_tokens, "stop")
    assert ours.num_passes == 2
    assert ours.num_drafted == ours.num_draft_accepted == len(expected.output_tokens)  # the end is no token
    assert ours.donor_regret == 0.0
    longer = drafts.ask(prompt, donor=donor_of(whole))
    assert longer.output_tokens == expected.output_tokens
    assert longer.num_draft_accepted == len(expected.output_tokens)
    earlier = drafts.ask(prompt, donor=donor_of(whole[:5], has_ended=True))
    assert earlier.output_tokens == expected.output_tokens
    assert earlier.donor_regret is not None
    assert earlier.donor_regret > 0  # the model goes on where the donor ended


def test_a_stop_string_ends_inside_an_accepted_draft(plain: Arm, drafts: Arm) -> None:
    prompt = prompt_of(7)
    whole = plain.ask(prompt)
    # ASCII behind which and before which text goes on, so that it is met in the middle of the draft.
    stop = next(char for char in whole.answer[5:30] if char.isascii() and char not in whole.answer[:5])
    sampling = Sampling(max_tokens=ANSWER_TOKENS, stop=(stop,))
    expected = plain.ask(prompt, sampling)
    asked = drafts.submit(prompt, sampling, donor=donor_of(whole.output_tokens))
    assert asked.text() == expected.answer == asked.request.answer
    ours = asked.request
    assert (ours.output_tokens, ours.finish_reason) == (expected.output_tokens, "stop")
    assert 5 <= len(ours.output_tokens) < ANSWER_TOKENS
    assert ours.num_draft_accepted == len(ours.output_tokens)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 20])
def test_max_tokens_ends_inside_an_accepted_draft(plain: Arm, drafts: Arm, max_tokens: int) -> None:
    prompt = prompt_of(8)
    whole = plain.ask(prompt).output_tokens
    ours = drafts.ask(prompt, Sampling(max_tokens=max_tokens), donor=donor_of(whole))
    assert ours.output_tokens == whole[:max_tokens]
    assert ours.finish_reason == "length"
    assert ours.num_drafted <= max_tokens
    assert ours.num_passes == min(2, max_tokens)


def test_the_context_ends_inside_an_accepted_draft(plain: Arm, drafts: Arm) -> None:
    prompt = prompt_of(9, 256 - 20)
    expected = plain.ask(prompt)
    assert len(expected.output_tokens) == 20
    ours = drafts.ask(prompt, donor=donor_of([*expected.output_tokens, *range(50)]))
    assert ours.output_tokens == expected.output_tokens
    assert ours.finish_reason == expected.finish_reason == "length"


@pytest.mark.parametrize(("max_tokens", "outcome"), [(1, Outcome.DRAFT), (2, Outcome.DRAFT), (3, Outcome.PREFIX)])
def test_half_of_the_answer_makes_the_outcome(drafts: Arm, plain: Arm, max_tokens: int, outcome: Outcome) -> None:
    prompt = prompt_of(10)
    first = plain.ask(prompt).output_tokens[0]
    receipt = Receipt(Outcome.PREFIX, "empty", "per_user", prefix_tokens=16)
    donor = donor_of([first, 300, 300])  # only the first token can be part of an answer
    ours = drafts.ask(prompt, Sampling(max_tokens=max_tokens), donor=donor, receipt=receipt)
    assert ours.receipt is not None
    assert ours.receipt.outcome is outcome
    assert (ours.receipt.draft_tokens, ours.receipt.draft_accepted, ours.receipt.prefix_tokens) == (1, 1, 16)


def test_the_receipt_is_final_when_the_end_is_published(drafts: Arm, plain: Arm) -> None:
    prompt = prompt_of(11)
    tokens = plain.ask(prompt).output_tokens
    asked = drafts.submit(prompt, GREEDY, donor=donor_of(tokens))
    asked.end()
    assert asked.receipt_at_end is not None
    assert asked.receipt_at_end.outcome is Outcome.DRAFT
    assert asked.receipt_at_end.draft_accepted >= ANSWER_TOKENS - 2  # decode takes over where a choice is not clear


@pytest.mark.parametrize("mode", [CacheMode.EXACT, CacheMode.PREFIX, CacheMode.OFF])
def test_a_mode_without_drafts_gets_none(drafts: Arm, plain: Arm, mode: CacheMode) -> None:
    prompt = prompt_of(12)
    expected = plain.ask(prompt)
    ours = drafts.ask(prompt, mode=mode, donor=donor_of(expected.output_tokens))
    assert (ours.num_drafted, ours.num_passes, ours.donor_regret) == (0, expected.num_passes, None)


def test_a_loop_without_drafts_ignores_donors(plain: Arm) -> None:
    prompt = prompt_of(13)
    expected = plain.ask(prompt)
    ours = plain.ask(prompt, donor=donor_of(expected.output_tokens))
    assert (ours.num_drafted, ours.num_passes) == (0, expected.num_passes)


def test_others_in_the_batch_get_the_tokens_they_get_alone(plain: Arm, drafts: Arm) -> None:
    prompts = [prompt_of(20 + i, 15 + 30 * i) for i in range(4)]
    alone = [plain.ask(prompt) for prompt in prompts]
    donors = [None, donor_of(replaced(alone[1].output_tokens, 7, 20)), None, donor_of(alone[3].output_tokens)]
    together = [
        drafts.submit(prompt, GREEDY, donor=donor, user=f"os:{i}")
        for i, (prompt, donor) in enumerate(zip(prompts, donors, strict=True))
    ]
    for asked, expected in zip(together, alone, strict=True):
        assert asked.end().state is RequestState.FINISHED
        assert_same_or_tied(plain, expected, asked.request)
    assert together[3].request.num_draft_accepted > ANSWER_TOKENS / 2


def test_cancel_during_a_verification_leaves_no_trace(make_arm: Callable[..., Arm], plain: Arm) -> None:
    arm, prompt = make_arm(drafts=True), prompt_of(14)
    expected = plain.ask(prompt)
    arm.engine.gate.clear()
    cancelled = arm.submit(prompt, GREEDY, donor=donor_of(expected.output_tokens[:20]))
    assert arm.engine.is_verifying.wait(TIMEOUT_S)
    arm.loop.cancel(cancelled.request)
    arm.engine.gate.set()
    assert cancelled.end().state is RequestState.CANCELLED
    # What the running pass brought may be there, nothing after it.
    assert cancelled.request.num_passes == 2
    assert len(cancelled.request.output_tokens) <= 21
    cancelled.kv()  # comes behind the release of the slot
    assert arm.engine.num_free_slots == arm.engine.num_slots
    assert not arm.loop._batch._drafts.num_live
    again = arm.ask(prompt, donor=donor_of(expected.output_tokens))
    assert again.output_tokens == expected.output_tokens


def assert_equal_kv(ours: PromptKV, theirs: PromptKV) -> None:
    def joined(spans: Sequence[KVSpan]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([s.keys for s in spans], dim=2), torch.cat([s.values for s in spans], dim=2)

    assert torch.equal(ours.logits, theirs.logits)
    for mine, other in zip(joined(ours.spans), joined(theirs.spans), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("num_prompt_tokens", [21, 2 * CHUNK_TOKENS, 2 * CHUNK_TOKENS + 9])
def test_prompt_kv_is_handed_over_bit_identical(plain: Arm, drafts: Arm, num_prompt_tokens: int) -> None:
    prompt = prompt_of(15, num_prompt_tokens)
    cold = plain.submit(prompt, GREEDY)
    cold.end()
    drafted = drafts.submit(prompt, GREEDY, donor=donor_of(replaced(cold.request.output_tokens, 9)))
    drafted.end()
    assert drafted.request.num_draft_accepted > 20
    assert_equal_kv(drafted.kv(), cold.kv())


def test_a_draft_goes_with_a_restored_prefix(plain: Arm, drafts: Arm) -> None:
    prompt = prompt_of(16, 2 * CHUNK_TOKENS + 9)
    cold = plain.submit(prompt, GREEDY)
    cold.end()
    kv, donor = cold.kv(), donor_of(cold.request.output_tokens)
    span = cut(kv.spans, 0, len(prompt))
    part = span.slice(0, CHUNK_TOKENS)
    warm = drafts.submit(prompt, GREEDY, donor=donor, restored=[part], num_restored=CHUNK_TOKENS)
    warm.end()
    assert warm.request.output_tokens == cold.request.output_tokens
    assert warm.request.num_passes == 3
    assert_equal_kv(warm.kv(), kv)
    full = drafts.ask(prompt, donor=donor, restored=[span], num_restored=len(prompt), prompt_logits=kv.logits.clone())
    assert full.output_tokens == cold.request.output_tokens
    assert full.num_passes == 1  # the draft alone


def test_what_the_prompt_repeats_is_drafted_and_not_counted(make_arm: Callable[..., Arm], tmp_path: Path) -> None:
    """With silent layers, tied embeddings say their input again: a model that quotes its prompt."""
    folder = save_model(tmp_path / "parrot", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith(("o_proj.weight", "down_proj.weight"))]:
        weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    parrot = load(folder)
    prompt, sampling = [5] * 40, Sampling(max_tokens=41)
    expected = make_arm(drafts=False, loaded=parrot).ask(prompt, sampling)
    ours = make_arm(drafts=True, loaded=parrot).ask(prompt, sampling)
    assert ours.output_tokens == expected.output_tokens == [5] * 41
    assert expected.num_passes == 41
    assert ours.num_passes == 3 + 5  # three tokens are the evidence, then nine a pass; two are left for the fifth
    assert ours.num_drafted == ours.num_draft_accepted == 0
    assert ours.receipt is not None
    assert ours.receipt.outcome is Outcome.MISS
