"""Untrusted JSON becomes our types or one clear refusal, never an exception of another kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.config import Config
from semcache.daemon import bodies
from semcache.daemon.engine.tokenizer import Tokenizer
from semcache.daemon.request import CacheMode
from semcache.errors import SemcacheError, UnsupportedError, UsageError
from tests.daemon.engine.conftest import byte_tokenizer


def chat(**fields: Any) -> bodies.ChatBody:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return bodies.parse(bodies.ChatBody, json.dumps(body).encode())


def test_defaults_come_from_the_config() -> None:
    ask = chat().ask(Config(), "os:1", None)
    assert ask.sampling.is_greedy
    assert ask.sampling.max_tokens == 256
    assert (ask.options.strategy, ask.options.mode) == ("per_user", CacheMode.AUTO)


def test_off_and_no_cache_are_two_names_of_one_thing() -> None:
    by_mode = chat(cache="off").ask(Config(), "os:1", None).options
    by_strategy = chat(cache_strategy="no_cache").ask(Config(), "os:1", None).options
    assert by_mode == by_strategy
    assert by_mode.mode is CacheMode.OFF


def test_cache_control() -> None:
    options = chat().ask(Config(), "os:1", "No-Cache, no-store").options
    assert (options.refresh, options.no_store, options.cached_only) == (True, True, False)
    assert chat().ask(Config(), "os:1", "only-if-cached").options.cached_only


def test_text_parts_are_joined_and_images_named() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).ask(Config(), "u", None).messages[0].content == "ab"
    with pytest.raises(UsageError, match="type"):
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


THINKING = Tokenizer(
    byte_tokenizer("{{ '<think>' if enable_thinking else 'no' }} {{ level | tojson if level is defined else '' }}")
)


def rendered(**options: Any) -> str:
    ask = chat(chat_template_kwargs=options).ask(Config(), "os:1", None)
    return THINKING.decode(THINKING.encode_chat(ask.messages, dict(ask.template_options)))


def test_thinking_is_switched_off_by_false() -> None:
    assert rendered(enable_thinking=False) == "no "
    assert rendered(enable_thinking=True) == "<think> "


@pytest.mark.parametrize(
    "level", [True, False, 0, 1, -2, 0.5, 1e30, "", "low", "1", "true", "null", '"low"', "{", "é\n"]
)
def test_a_template_gets_the_values_that_were_sent(level: Any) -> None:
    assert json.loads(rendered(level=level).removeprefix("no ")) == level
    assert type(json.loads(rendered(level=level).removeprefix("no "))) is type(level)


def test_words_and_numbers_for_the_template_keep_the_text_that_identifies_a_request() -> None:
    ask = chat(chat_template_kwargs={"style": "low key", "level": 2, "share": 0.5}).ask(Config(), "os:1", None)
    assert ask.template_options == (("level", "2"), ("share", "0.5"), ("style", "low key"))


def test_neutral_values_of_what_is_not_offered_are_fine() -> None:
    chat(n=1, logprobs=False, tools=[], presence_penalty=0, response_format={"type": "text"}, metadata={"a": "b"})


@pytest.mark.parametrize(("name", "value"), [("n", 2), ("logprobs", True), ("tools", [1]), ("presence_penalty", 0.5)])
def test_what_is_not_offered_is_named(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=name):
        chat(**{name: value})


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"null", b'"x"', b"{} trailing"])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(UsageError):
        bodies.parse(bodies.ChatBody, raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*bodies.ChatBody.model_fields, "tools", "n", "nonsense"])


@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_body_is_accepted_or_refused_in_one_line(fields: dict[str, Any]) -> None:
    try:
        chat(**fields).ask(Config(), "os:1", None)
    except SemcacheError as error:
        refusal = error.message
    else:
        return
    assert refusal
    assert "\n" not in refusal
