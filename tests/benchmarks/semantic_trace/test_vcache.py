"""The baseline against the figures that are known of the published rule, and worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.semantic_trace.vcache import Grid, Observations, fine_grid, published_grid, separable_variance


def entry(num: int, positive: float, negatives: tuple[float, ...] = ()) -> Observations:
    """`num` observations, the two synthetic ones included, all others at `positive`."""
    observations = Observations()
    for similarity in negatives:
        observations.add(similarity, False)
    while len(observations.labels) < num:
        observations.add(positive, True)
    return observations


def settled(observations: Observations, similarity: float, max_error: float, grid: Grid) -> float:
    return max(0.0, observations.explore_probability(similarity, max_error, grid))


@pytest.mark.parametrize("num", [48, 60, 300])
@pytest.mark.parametrize(("max_error", "known"), [(0.005, 0.76), (0.01, 0.51), (0.015, 0.27), (0.02, 0.02)])
def test_the_coarse_grid_explores_perfect_entries_again(num: int, max_error: float, known: float) -> None:
    assert settled(entry(num, 1.0), 1.0, max_error, published_grid()) == pytest.approx(known, abs=0.006)


def test_the_variance_table_dips() -> None:
    assert settled(entry(26, 1.0), 1.0, 0.01, published_grid()) == pytest.approx(0.45, abs=0.01)


@pytest.mark.parametrize(("num", "max_error"), [(10, 0.01), (16, 0.005), (48, 0.01), (300, 0.005)])
def test_the_fine_grid_does_not(num: int, max_error: float) -> None:
    assert settled(entry(num, 1.0), 1.0, max_error, fine_grid()) == 0.0


@pytest.mark.parametrize(
    ("negative", "known"), [(0.80, {0.01: 0.97, 0.03: 0.91, 0.05: 0.86}), (0.60, {0.01: 0.92, 0.03: 0.76, 0.05: 0.60})]
)
def test_one_confusing_neighbour_pins_an_entry(negative: float, known: dict[float, float]) -> None:
    observations = entry(300, 0.95, (negative,))
    for max_error, share in known.items():
        assert settled(observations, 0.95, max_error, published_grid()) == pytest.approx(share, abs=0.03)


def test_fewer_than_four_labels_always_explore() -> None:
    assert Observations().explore_probability(1.0, 0.5, fine_grid()) == 1.0
    assert entry(5, 1.0).explore_probability(1.0, 0.5, fine_grid()) == 1.0
    assert entry(6, 1.0).explore_probability(1.0, 0.5, fine_grid()) < 1.0


def test_a_case_worked_by_hand() -> None:
    """One grid point, 48 separable labels around 0.5: t' = 0.5 + sqrt(0.0151), alpha = 0.9 * sigmoid(g (s - t'))."""
    observations = entry(48, 1.0)
    grid = Grid(np.array([0.1]), np.array([1.0]))
    observations.explore_probability(1.0, 0.2, grid)
    assert observations._fitted is not None
    threshold, slope, deviation = observations._fitted
    assert threshold == pytest.approx(0.5, abs=1e-6)
    assert deviation == pytest.approx(math.sqrt(0.0151))
    alpha = 0.9 / (1 + math.exp(-slope * (0.8 - 0.5 - math.sqrt(0.0151))))
    assert observations.explore_probability(0.8, 0.2, grid) == pytest.approx(1 - 0.2 / (1 - alpha), abs=1e-6)


def test_labels_that_overlap_use_the_curvature() -> None:
    """More of the same mixed labels make the threshold surer, which the table never does."""
    few, many = Observations(), Observations()
    for similarity, same in [(0.7, False), (0.9, True), (0.8, True), (0.85, False)] * 5:
        few.add(similarity, same)
    for similarity, same in [(0.7, False), (0.9, True), (0.8, True), (0.85, False)] * 40:
        many.add(similarity, same)
    few.explore_probability(0.9, 0.05, fine_grid())
    many.explore_probability(0.9, 0.05, fine_grid())
    assert few._fitted is not None
    assert many._fitted is not None
    assert many._fitted[2] < few._fitted[2] / 2


def test_similarities_are_rounded_to_three_decimals() -> None:
    observations = Observations()
    observations.add(0.98765, True)
    assert observations.similarities[-1] == 0.988


def test_variance_keeps_the_known_points_and_lies_between_them() -> None:
    assert separable_variance(6) == 0.0354
    assert separable_variance(48) == separable_variance(5000) == 0.0151
    assert separable_variance(10) > separable_variance(12) > separable_variance(16)
