"""The next turn's tokens hold for any question and template; the queue is short, newest first, and forgets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcache.daemon.cache.strategy import Access, access
from semcache.daemon.engine.tokenizer import Tokenizer
from semcache.daemon.request import CacheMode, CacheOptions, Message, Request, RequestState, Sampling
from semcache.daemon.turns import Turn, Turns, next_turn
from tests.daemon.engine.conftest import TEMPLATE, byte_tokenizer

CHUNK_TOKENS = 16
# System text is refused, so it goes in front of the first user message.
FOLDING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
# The system text stands in front of the last question only; earlier reasoning is dropped.
MOVING = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last %}{{ system }}\n{% endif %}{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSING = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + TEMPLATE
SERVED: dict[str | None, Any] = {
    template: SimpleNamespace(
        tokenizer=Tokenizer(byte_tokenizer(template)), info=SimpleNamespace(context_tokens=256, fingerprint="f")
    )
    for template in (TEMPLATE, FOLDING, MOVING, REFUSING, None)
}
ANSWER = "It is made of water, and of nothing else."


def finished(
    question: str = "what is rain", answer: str = ANSWER, *, template: str | None = TEMPLATE, user: str = "os:1/ann",
    earlier: tuple[Message, ...] = (), **changed: Any,
) -> Request:  # fmt: skip
    messages = (Message("system", "Be brief."), *earlier, Message("user", question))
    request = Request(
        id=question, user=user, model="m", messages=messages,
        prompt_tokens=SERVED[template].tokenizer.encode_chat(messages), sampling=Sampling(),
        options=CacheOptions(**changed), publish=lambda event: None,
    )  # fmt: skip
    request.state, request.answer, request.output_tokens = RequestState.FINISHED, answer, list(answer.encode())
    return request


def granted(request: Request, strategy: str = "per_user") -> Access:
    namespace = request.options.namespace
    return access(strategy, user=request.user, allow_global="own", namespace=namespace)


def noted(turns: Turns, request: Request, strategy: str = "per_user", template: str | None = TEMPLATE) -> Turn | None:
    before = turns.next()
    turns.note(request, granted(request, strategy), SERVED[template])
    return None if turns.next() is before else turns.next()


@pytest.fixture
def turns() -> Turns:
    return Turns(chunk_tokens=CHUNK_TOKENS)


@pytest.mark.parametrize("template", [TEMPLATE, FOLDING, MOVING, None], ids=["plain", "folding", "moving", "none"])
@given(question=st.text(max_size=20))
@settings(max_examples=40, deadline=None)
def test_every_further_question_begins_so(template: str | None, question: str) -> None:
    request = finished(template=template)
    tokens = next_turn(request, SERVED[template])
    going_on = (*request.messages, Message("assistant", request.answer), Message("user", question))
    assert SERVED[template].tokenizer.encode_chat(going_on)[: len(tokens)] == tokens
    text = SERVED[template].tokenizer.decode(tokens)
    assert ANSWER in text
    assert "Be brief." in text


def test_where_there_is_no_next_turn() -> None:
    assert next_turn(finished(template=REFUSING), SERVED[REFUSING]) == []
    raw = finished()
    raw.prompt_tokens = SERVED[TEMPLATE].tokenizer.encode_text("what is rain")
    assert next_turn(raw, SERVED[TEMPLATE]) == []


def test_a_turn_is_whole_chunks_beyond_the_prompts_own(turns: Turns) -> None:
    request = finished()
    turn = noted(turns, request)
    assert turn is not None
    assert len(turn.tokens) % CHUNK_TOKENS == 0
    assert len(turn.tokens) >= request.num_prompt_tokens + len(request.output_tokens) - CHUNK_TOKENS
    assert turn.tokens[: request.num_prompt_tokens] == list(request.prompt_tokens)
    assert (turn.user, turn.request_id) == (request.user, request.id)


@given(length=st.integers(1, 80), fill=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_it_is_queued_iff_it_reaches_a_further_boundary(length: int, fill: int) -> None:
    turns = Turns(chunk_tokens=CHUNK_TOKENS)
    request = finished("x" * (1 + fill), "y" * length)
    tokens = next_turn(request, SERVED[TEMPLATE])
    reaches = len(tokens) // CHUNK_TOKENS > request.num_prompt_tokens // CHUNK_TOKENS
    assert (noted(turns, request) is not None) == reaches


def test_a_short_question_and_answer_costs_nothing() -> None:
    turns = Turns(chunk_tokens=128)
    request = finished("why", "so")
    assert not turns.concerns(request, granted(request))
    assert noted(turns, request) is None


def test_the_context_leaves_room_to_answer(turns: Turns) -> None:
    turn = noted(turns, finished("x" * 100, "y" * 110))
    assert turn is not None
    assert len(turn.tokens) == 240
    assert noted(turns, finished("x" * 208, "y" * 8)) is None


@pytest.mark.parametrize("changed", [{"no_store": True}, {"mode": CacheMode.OFF}])
def test_what_is_not_stored_is_not_queued(turns: Turns, changed: dict[str, Any]) -> None:
    assert noted(turns, finished(**changed)) is None


@pytest.mark.parametrize("mode", [CacheMode.AUTO, CacheMode.LOSSLESS, CacheMode.EXACT, CacheMode.PREFIX])
def test_what_is_stored_is_queued(turns: Turns, mode: CacheMode) -> None:
    assert noted(turns, finished(mode=mode)) is not None


def test_a_request_that_did_not_finish_is_not_queued(turns: Turns) -> None:
    assert noted(turns, finished(), "no_cache") is None
    assert noted(turns, finished(answer="")) is None
    for state in (RequestState.FAILED, RequestState.CANCELLED):
        request = finished()
        request.state = state
        assert noted(turns, request) is None


def test_in_rounding_nothing_is_queued() -> None:
    """The next turn restores the answer's own KV."""
    turns = Turns(chunk_tokens=CHUNK_TOKENS, exactness="rounding")
    assert not turns.concerns(finished(), granted(finished()))
    assert noted(turns, finished()) is None
    assert len(turns) == 0


def test_the_newest_is_next_and_the_oldest_gives_way() -> None:
    turns = Turns(chunk_tokens=CHUNK_TOKENS, max_turns=2)
    first, second, third = (noted(turns, finished(text)) for text in ("what is rain", "what is snow", "what is hail"))
    assert first is not None
    assert second is not None
    assert third is not None
    assert len(turns) == 2
    assert turns.next() is third
    turns.drop(third)
    assert turns.next() is second
    turns.drop(second)
    assert turns.next() is None


def test_a_conversation_that_went_on_is_queued_once(turns: Turns) -> None:
    first = finished()
    noted(turns, first)
    noted(turns, finished("what is snow"))
    going_on = finished("and hail", earlier=(*first.messages[1:], Message("assistant", ANSWER)))
    turn = noted(turns, going_on)
    assert turn is not None
    assert len(turns) == 2
    noted(turns, going_on)
    assert len(turns) == 2
    noted(turns, finished(user="os:1/bob"))
    assert len(turns) == 3, "what another user said is stored apart"


def test_a_cleared_scope_is_forgotten_with_its_namespaces(turns: Turns) -> None:
    noted(turns, finished())
    noted(turns, finished("what is snow", namespace="run"))
    noted(turns, finished("what is hail"), "global_user")
    other = noted(turns, finished(user="os:1"))
    turns.forget_scope("user:os:1/ann#run")
    assert len(turns) == 3
    turns.forget_scope("global:os:1")
    assert len(turns) == 2
    turns.forget_scope("user:os:1/ann")
    assert len(turns) == 1
    assert turns.next() is other


def test_a_removed_answer_takes_what_would_be_written_of_its_conversation(turns: Turns) -> None:
    first = finished()
    messages = [(message.role, message.content) for message in first.messages]
    other = noted(turns, finished("what is snow"))
    theirs = noted(turns, finished(user="os:1/bob"))
    noted(turns, finished("and hail", earlier=(*first.messages[1:], Message("assistant", ANSWER))))
    turns.forget_conversation("user:os:1/ann#run", messages)
    assert len(turns) == 3
    turns.forget_conversation("user:os:1/ann", messages)
    assert turns.next() is theirs
    assert theirs is not None
    turns.drop(theirs)
    assert turns.next() is other


def test_what_was_forgotten_is_not_stored(turns: Turns) -> None:
    turn = noted(turns, finished())
    assert turn is not None
    written = []

    def store() -> bool:
        written.append(turn)
        return True

    assert turns.keep(turn, store)
    turns.forget_scope("user:os:1/ann")
    assert not turns.keep(turn, store)
    assert written == [turn]
