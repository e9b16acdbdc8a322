"""A question in the tokens of the served model, and donors in them, too."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from semcache.daemon.asked import donor_of, model_key, request_of, tokenise
from semcache.daemon.cache.similar import Neighbour
from semcache.daemon.cache.strategy import Scope
from semcache.daemon.cuts import Cuts
from semcache.daemon.live import Ask
from semcache.daemon.request import CacheOptions, Message, Sampling
from semcache.errors import PromptTooLongError, UsageError
from tests.daemon.entries import an_entry

CONTEXT = 20


class Bytes:
    """Bytes as tokens, between what stands before and behind every raw text."""

    def __init__(self, before: tuple[int, ...] = (), behind: tuple[int, ...] = ()) -> None:
        self.before, self.behind = before, behind

    def encode_chat(self, messages: tuple[Message, ...], options: dict[str, str]) -> list[int]:
        assert options in ({}, {"thinking": "false"})
        return list("".join(message.content for message in messages).encode())

    def encode_text(self, text: str) -> list[int]:
        return [*self.before, *text.encode(), *self.behind]


def served(*around: tuple[int, ...]) -> Any:
    info = SimpleNamespace(name="m", context_tokens=CONTEXT, fingerprint="f", folder_id="m-1")
    return SimpleNamespace(info=info, tokenizer=Bytes(*around), numerics="n", cuts=Cuts(32, 32))


def ask(text: str, max_tokens: int = 8, **changed: Any) -> Ask:
    return Ask("os:1/ann", (Message("user", text),), Sampling(max_tokens=max_tokens), CacheOptions(), **changed)


def test_a_prompt_needs_a_token_and_room_for_one() -> None:
    assert tokenise(served(), ask("hi", template_options=(("thinking", "false"),))) == [104, 105]
    with pytest.raises(UsageError, match="no tokens"):
        tokenise(served(), ask(""))
    assert len(tokenise(served(), ask("x" * (CONTEXT - 1)))) == CONTEXT - 1
    with pytest.raises(PromptTooLongError, match=f"{CONTEXT} tokens"):
        tokenise(served(), ask("x" * CONTEXT))


@pytest.mark.parametrize(("num_tokens", "wanted", "given"), [(2, 8, 8), (15, 8, 5), (19, 8, 1)])
def test_the_limit_is_cut_to_the_room(num_tokens: int, wanted: int, given: int) -> None:
    question = ask("x" * num_tokens, wanted)
    request = request_of(question, tokenise(served(), question), served(), lambda event: None)
    assert request.sampling.max_tokens == given
    assert (request.user, request.messages) == ("os:1/ann", question.messages)


def test_two_requests_have_two_names_and_two_noises() -> None:
    made = [request_of(ask("x"), [1], served(), lambda event: None) for _ in range(2)]
    assert made[0].id != made[1].id
    assert made[0].noise_seed != made[1].noise_seed


def found(**changed: Any) -> Neighbour:
    return Neighbour(
        Scope("global", "global:os:1"), an_entry(**{"answer": "Hello", "answer_tokens": (7, 8)} | changed), 0.9
    )


def test_a_donor_of_the_same_model_keeps_its_tokens() -> None:
    donor = donor_of(found(), served((256,)), 130.0)
    assert donor.tokens == (7, 8)
    assert (donor.scope, donor.entry_id, donor.prompt, donor.score, donor.age_s) == ("global", "e_1", "Hi?", 0.9, 30.0)
    assert donor_of(found(), served(), 0.0).age_s == 0.0, "a clock that was set back"


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_a_donor_of_another_model_is_cut_anew_without_what_begins_a_prompt(finish_reason: str) -> None:
    other = found(fingerprint="another", finish_reason=finish_reason)
    for around in ([], [(256,)], [(256, 257)]):
        donor = donor_of(other, served(*around), 130.0)
        assert bytes(donor.tokens) == b"Hello"
        assert donor.has_ended == (finish_reason == "stop")
    assert donor_of(other, served((256,), (258,)), 130.0).tokens == (*b"Hello", 258), (
        "an end stays for the engine to cut"
    )
    assert donor_of(found(fingerprint="another", answer=""), served((256,)), 130.0).tokens == ()


def test_the_model_key_is_of_the_served_model() -> None:
    key = model_key(served(), block_tokens=16)
    assert dataclasses.astuple(key) == ("m", "m-1", "f", "n", (32, 32), 16)
