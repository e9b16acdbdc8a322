"""Where a prompt that has KV for its first tokens goes on."""

from __future__ import annotations

import pytest

from semcache.daemon.cuts import Cuts


@pytest.mark.parametrize(("num_tokens", "start"), [(1, 0), (16, 0), (17, 16), (32, 16), (33, 32)])
def test_at_least_the_last_token_is_computed(num_tokens: int, start: int) -> None:
    assert Cuts(16, 16).start(num_tokens, num_tokens) == start
    assert Cuts(1, 1).start(num_tokens, num_tokens) == num_tokens - 1


@pytest.mark.parametrize(("num_covered", "start"), [(0, 0), (15, 0), (16, 16), (47, 32), (49, 48)])
def test_a_prompt_goes_on_behind_the_last_cut(num_covered: int, start: int) -> None:
    assert Cuts(16, 4).start(num_covered, 50) == start
    assert Cuts(1, 1).start(num_covered, 50) == num_covered


@pytest.mark.parametrize(("num_tokens", "start"), [(16, 0), (32, 28), (48, 44), (47, 32), (33, 32)])
def test_only_a_whole_chunk_that_is_not_the_first_is_narrowed(num_tokens: int, start: int) -> None:
    assert Cuts(16, 4).start(num_tokens, num_tokens) == start
