"""The ranked search against a plain one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.semantic_trace.neighbours import Ranks, Stored
from semcache.store.vectors import Partition, VectorIndex


def unit_vectors(num: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("depth", [1, 4, 64])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_it_finds_what_the_stores_own_search_finds(depth: int, share: float) -> None:
    vectors = unit_vectors(600, 8, 1)
    ranks = Ranks(vectors, depth)
    stored = Stored(ranks)
    index = VectorIndex(lambda scope: [])
    partition = Partition("model", "context", "params", "embedder")
    rng = np.random.default_rng(2)
    for asked in range(600):
        found = stored.nearest(asked, 5)
        known = index.nearest("scope", vectors[asked], 5, partition)
        assert [neighbour.at for neighbour in found] == [int(entry_id) for entry_id, _ in known]
        assert [n.score for n in found] == pytest.approx([score for _, score in known], abs=1e-5)
        if rng.random() < share:
            stored.add(asked)
            index.add("scope", f"{asked:05}", partition, vectors[asked])


def test_equal_scores_go_to_the_earlier_one() -> None:
    vectors = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (5, 1))
    stored = Stored(Ranks(vectors), preloaded=[0, 1, 2])
    assert [neighbour.at for neighbour in stored.nearest(4, 2)] == [0, 1]
    assert stored.all() == [0, 1, 2]


def test_nothing_later_is_found() -> None:
    vectors = unit_vectors(20, 4, 3)
    stored = Stored(Ranks(vectors), preloaded=range(20))
    assert stored.nearest(0, 5) == []
    assert {neighbour.at for neighbour in stored.nearest(3, 5)} == {0, 1, 2}
