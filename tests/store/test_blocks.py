"""Names of blocks: equal prefixes share them, nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import StoreError
from semcache.store.blocks import Owner, block_chain, short_key, tail_key

from .samples import FEW, ROOT

TOKENS = st.lists(st.integers(0, 3), max_size=12)


@FEW
@given(TOKENS, TOKENS, TOKENS, st.integers(1, 4))
def test_equal_prefixes_give_equal_hashes_and_unequal_ones_never(
    prefix: list[int], left: list[int], right: list[int], block_tokens: int
) -> None:
    a, b = prefix + left, prefix + right
    chain_a, chain_b = block_chain(ROOT, a, block_tokens), block_chain(ROOT, b, block_tokens)
    for number in range(min(len(chain_a), len(chain_b))):
        end = (number + 1) * block_tokens
        assert (chain_a[number].hash == chain_b[number].hash) == (a[:end] == b[:end])


@FEW
@given(TOKENS, st.integers(1, 4))
def test_chain_covers_the_full_blocks(tokens: list[int], block_tokens: int) -> None:
    chain = block_chain(ROOT, tokens, block_tokens)
    assert len(chain) == len(tokens) // block_tokens
    assert [token for key in chain for token in key.token_ids] == tokens[: len(chain) * block_tokens]
    assert [key.parent for key in chain] == [None, *[key.hash for key in chain]][: len(chain)]
    assert [key.first_token for key in chain] == [number * block_tokens for number in range(len(chain))]


@FEW
@given(
    TOKENS.filter(bool), st.text("0123456789abcdef", min_size=1, max_size=4), st.text("0123456789abcdef", max_size=4)
)
def test_another_root_shares_nothing(tokens: list[int], root: str, more: str) -> None:
    ours = {key.hash for key in block_chain(root, tokens, 1)}
    theirs = {key.hash for key in block_chain(root + "x" + more, tokens, 1)}
    assert not ours & theirs


def test_a_tail_is_never_a_block() -> None:
    (block,) = block_chain(ROOT, [1, 2], 2)
    tail = tail_key(ROOT, None, 0, [1, 2])
    assert tail.hash != block.hash
    assert tail_key(ROOT, block.hash, 2, []).hash != tail_key(ROOT, block.hash, 2, [0]).hash
    assert tail_key(ROOT, None, 0, []).hash != tail_key(ROOT, block.hash, 0, []).hash


def test_a_first_block_may_be_a_child_of_the_root() -> None:
    chain = block_chain(ROOT, [1, 2, 3, 4], 2, parent=ROOT)
    assert [key.parent for key in chain] == [ROOT, chain[0].hash]
    assert not {key.hash for key in chain} & {key.hash for key in block_chain(ROOT, [1, 2, 3, 4], 2)}
    assert short_key(ROOT, chain[0].hash, 2, [3]).hash not in {key.hash for key in chain}
    assert short_key(ROOT, chain[0].hash, 2, [3, 4]) == chain[1]


def test_the_position_is_part_of_the_name() -> None:
    assert tail_key(ROOT, None, 0, [1]).hash != tail_key(ROOT, None, 1, [1]).hash


@pytest.mark.parametrize("model", ["..", "a/b", "", ".hidden", "a b", "x" * 200])
def test_a_model_name_that_is_no_folder_is_refused(model: str) -> None:
    with pytest.raises(StoreError, match="not safe as a folder"):
        Owner("scope", "user", model, "fp")
