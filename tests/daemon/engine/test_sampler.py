"""Which token is chosen: greedy, noise by seed and position, filters."""

from __future__ import annotations

import math

import pytest
import torch

from semcache.daemon.engine.sampler import SampleKey, gumbel, sample, sample_clearly
from semcache.daemon.request import Sampling


def draw(logits: torch.Tensor, sampling: Sampling, num_draws: int, seed: int = 1) -> list[int]:
    return [sample(logits[None], [SampleKey(sampling, seed, position)])[0] for position in range(num_draws)]


def test_greedy_takes_the_lowest_id_of_equal_maxima() -> None:
    logits = torch.zeros(2, 1000)
    logits[1, [999, 40, 77]] = 3.0
    assert sample(logits, [SampleKey(Sampling(), 0, 0)] * 2) == [0, 40]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 300)
    keys = [SampleKey(Sampling(temperature=t, top_p=0.9), seed, 7) for seed, t in enumerate((0, 1, 0.5, 2, 1))]
    together = sample(logits, keys)
    assert together == [sample(logits[row : row + 1], keys[row : row + 1])[0] for row in range(5)]


def test_seed_and_position_decide_the_noise() -> None:
    sampling = Sampling(temperature=1.0)
    flat = torch.zeros(500)
    first = draw(flat, sampling, 20, seed=3)
    assert first == draw(flat, sampling, 20, seed=3)
    assert first != draw(flat, sampling, 20, seed=4)
    assert len(set(first)) > 15  # another position, another noise


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**64 - 1])
def test_every_64_bit_seed_is_accepted(seed: int) -> None:
    assert gumbel(seed, 0, 8, torch.arange(8)).isfinite().all()


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = draw(logits, Sampling(temperature=2.0), 4000)
    expected = (logits / 2.0).softmax(0)
    counts = torch.bincount(torch.tensor(draws), minlength=4) / 4000
    assert torch.allclose(counts, expected, atol=4 * math.sqrt(0.25 / 4000))


def test_top_k_keeps_exactly_k_and_the_lowest_ids_of_a_tie() -> None:
    logits = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
    assert set(draw(logits, Sampling(temperature=5.0, top_k=2), 200)) == {0, 2}
    assert set(draw(logits, Sampling(temperature=5.0, top_k=99), 400)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draw(logits, Sampling(temperature=1.0, top_p=0.79), 400)) == {0, 1}
    assert set(draw(logits, Sampling(temperature=1.0, top_p=0.81), 400)) == {0, 1, 2}
    assert set(draw(logits, Sampling(temperature=1.0, top_p=0.0001), 50)) == {0}
    # The nucleus is taken of what top-k left: 0.5 and 0.3 become 0.625 and 0.375.
    assert set(draw(logits, Sampling(temperature=1.0, top_k=2, top_p=0.6), 200)) == {0}


def test_top_p_of_a_flat_distribution_matches_a_full_sort() -> None:
    torch.manual_seed(0)
    for top_p in (0.1, 0.5, 0.9, 0.999):
        logits = torch.randn(200)
        ordered, order = logits.softmax(0).sort(descending=True, stable=True)
        num_kept = int((ordered.cumsum(0) - ordered < top_p).sum())
        drawn = set(draw(logits, Sampling(temperature=1.0, top_p=top_p), 300))
        assert drawn <= set(order[:num_kept].tolist())


def test_a_tiny_temperature_is_greedy() -> None:
    assert set(draw(torch.tensor([1.0, 3.0, 2.999]), Sampling(temperature=1e-30), 50)) == {1}


def test_logits_without_a_finite_maximum_give_no_token_to_their_row_alone() -> None:
    logits = torch.tensor([[0.0, math.nan], [0.0, 1.0], [math.inf, 0.0], [-math.inf, -math.inf], [-math.inf, 0.0]])
    for sampling in (Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.5), Sampling(top_k=1)):
        tokens = sample(logits, [SampleKey(sampling, 0, 0)] * 5)
        assert [token is None for token in tokens] == [True, False, True, True, False]


def clear(logits: torch.Tensor, sampling: Sampling, margin: float, position: int = 0) -> int | None:
    return next(sample_clearly(logits[None], [SampleKey(sampling, 1, position)], margin))


def test_a_greedy_choice_is_clear_above_the_margin() -> None:
    logits = torch.tensor([1.0, 3.0, 2.5])
    assert clear(logits, Sampling(), 0.4) == 1
    assert clear(logits, Sampling(), 0.5) is None
    assert clear(torch.tensor([3.0, 1.0, 3.0]), Sampling(), 0.0) is None  # equal logits are a tie at any margin


SAMPLINGS = [
    Sampling(temperature=0.8),
    Sampling(temperature=1.3, top_k=5),
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(temperature=0.7, top_k=20, top_p=0.8),
    Sampling(),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_clear_choice_is_the_one_of_sample_and_survives_every_change_within_the_margin(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(2)
    margin, num_clear, num_draws, num_moved = 0.2, 0, 150, 0
    for position in range(num_draws):
        logits = torch.randn(60, generator=generator) * 3
        token = clear(logits, sampling, margin, position)
        key = SampleKey(sampling, 1, position)
        exact = sample(logits[None], [key])[0]
        # Off by half the margin either way, so that two logits move by up to the margin against each other.
        offs = [(torch.rand(60, generator=generator) - 0.5) * margin for _ in range(8)]
        offs += [torch.where(torch.arange(60) == exact, -margin / 2, margin / 2), -margin / 2 * logits.sign()]
        others = {sample((logits + off)[None], [key])[0] for off in offs}
        num_moved += others != {exact}
        if token is not None:
            num_clear += 1
            assert token == exact
            assert others == {exact}
    assert num_clear > num_draws / 2
    assert num_moved > 0  # the changes are such that choices that are not clear do change


def test_rows_behind_the_last_one_asked_for_are_not_sampled() -> None:
    logits, sampling = torch.randn(3, 100), Sampling(temperature=1.0)
    keys = [SampleKey(sampling, 1, 0), SampleKey(sampling, 1, 1)]
    tokens = sample_clearly(logits, keys, 0.0)
    assert [next(tokens), next(tokens)] == sample(logits[:2], keys)
    assert next(tokens, "none left") == "none left"


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_logits_without_a_finite_maximum_are_no_clear_choice(number: float) -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0, top_p=0.5)):
        assert clear(torch.tensor([0.0, number, 0.0]), sampling, 0.1) is None
