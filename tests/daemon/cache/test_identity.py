"""Everything that changes the answer changes the key; nothing else does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from semcache.daemon.cache.identity import chain_root, fits, identify
from semcache.daemon.request import CacheOptions, Message, Request, Sampling

BASE: dict[str, Any] = {
    "id": "r", "user": "os:1", "model": "m",
    "messages": (Message("system", "Be brief."), Message("user", "Hi?")), "prompt_tokens": [1, 2],
    "sampling": Sampling(), "options": CacheOptions(),
}  # fmt: skip


def key(fingerprint: str = "f", **changed: Any) -> str:
    return identify(fingerprint, Request(publish=lambda event: None, **{**BASE, **changed})).request_key


def sampled(**values: Any) -> Sampling:
    return replace(Sampling(temperature=0.7, seed=1), **values)


def test_same_request_same_key_whoever_asks_and_whatever_the_limit() -> None:
    assert key() == key(user="os:2", id="other", sampling=Sampling(max_tokens=5))
    # Greedy: these parameters change nothing.
    assert key() == key(sampling=Sampling(top_p=0.5, top_k=3, seed=9))


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "g"},
        {"messages": (Message("user", "Hi?"),)},
        {"messages": (Message("system", "Be brief"), Message("user", "Hi?"))},
        {"messages": (Message("system", "Be brief."), Message("user", "Hi"))},
        {"messages": (Message("system", "Be "), Message("system", "brief."), Message("user", "Hi?"))},
        {"messages": (Message("user", "Be brief."), Message("user", "Hi?"))},
        {"sampling": Sampling(stop=("x",))},
        {"sampling": sampled()},
        {"template_options": (("enable_thinking", "True"),)},
        {"prompt_tokens": [1, 3]},  # a template that writes the date
    ],
)
def test_what_changes_the_answer_changes_the_key(changed: dict[str, Any]) -> None:
    assert key(**changed) != key()


@pytest.mark.parametrize("change", [{"seed": 2}, {"temperature": 0.8}, {"top_p": 0.9}, {"top_k": 4}, {"stop": ("a",)}])
def test_sampling_parameters_count_when_sampling(change: dict[str, Any]) -> None:
    assert key(sampling=sampled(**change)) != key(sampling=sampled())


def test_moving_text_between_turns_changes_the_context() -> None:
    one = (Message("user", "a"), Message("assistant", "b"), Message("user", "Why?"))
    two = (Message("user", "a b"), Message("assistant", ""), Message("user", "Why?"))
    assert key(messages=one) != key(messages=two)


def test_a_finished_answer_fits_larger_limits_and_a_cut_one_only_its_own() -> None:
    limit = Sampling(max_tokens=10)
    assert fits(limit, "stop", 10)
    assert not fits(limit, "stop", 11)
    assert fits(limit, "length", 10)
    assert not fits(limit, "length", 9)


def test_chain_root_separates_scope_model_and_numerics() -> None:
    roots = {chain_root(*parts) for parts in (("s", "f", "n"), ("t", "f", "n"), ("s", "g", "n"), ("s", "f", "m"))}
    assert len(roots) == 4
