"""Incremental text: whatever the split into tokens, the joined text is the decoded text up to the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from semcache.daemon.engine.stream import TextStream
from semcache.daemon.engine.tokenizer import Tokenizer
from tests.daemon.engine.conftest import byte_tokenizer

TOKENIZER = Tokenizer(byte_tokenizer())
STOPS = st.lists(st.text("ab\nё", min_size=1, max_size=4), max_size=3)


def stream_all(stream: TextStream, ids: Sequence[int]) -> str:
    pushed = []
    for token_id in ids:
        pushed.append(stream.push(token_id))
        if stream.stopped:
            break
    return "".join(pushed) + stream.flush()


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is complete first."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(found)[1]] if found else text


@settings(max_examples=300, deadline=None)
@given(text=st.text(), stops=STOPS)
def test_joined_text_is_the_decoded_text(text: str, stops: list[str]) -> None:
    ids = TOKENIZER.encode_text(text)
    assert stream_all(TOKENIZER.stream(stops), ids) == cut(text, stops)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 257), max_size=40))
def test_any_bytes_stream_to_what_they_decode_to(ids: list[int]) -> None:
    assert stream_all(TOKENIZER.stream(), ids) == TOKENIZER.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab", max_size=30), stops=STOPS, sizes=st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_the_cut_does_not_depend_on_the_tokens(text: str, stops: list[str], sizes: list[int]) -> None:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    stream = TextStream(lambda ids: "".join(pieces[i] for i in ids), stops)
    assert stream_all(stream, range(len(pieces))) == cut(text, stops)


def test_a_character_comes_whole() -> None:
    stream = TOKENIZER.stream()
    assert [stream.push(token) for token in TOKENIZER.encode_text("a😀b")] == ["a", "", "", "", "😀", "b"]


def test_an_unfinished_character_comes_with_the_flush() -> None:
    stream = TOKENIZER.stream()
    for token in TOKENIZER.encode_text("😀")[:2]:
        assert stream.push(token) == ""
    assert stream.flush() == "\ufffd"


def test_the_start_of_a_stop_string_is_held_until_it_is_decided() -> None:
    stream = TOKENIZER.stream(["END"])
    assert [stream.push(token) for token in TOKENIZER.encode_text("xENx")] == ["x", "", "", "ENx"]
    assert [stream.push(token) for token in TOKENIZER.encode_text("yEND")] == ["y", "", "", ""]
    assert stream.stopped
    assert stream.push(TOKENIZER.encode_text("z")[0]) == ""
    assert stream.flush() == ""


def test_a_held_start_that_never_completes_is_text() -> None:
    assert stream_all(TOKENIZER.stream(["END"]), TOKENIZER.encode_text("the EN")) == "the EN"


@pytest.mark.parametrize("stops", [("",), ("", "b")])
def test_an_empty_stop_string_never_stops(stops: tuple[str, ...]) -> None:
    assert stream_all(TOKENIZER.stream(stops), TOKENIZER.encode_text("ab")) == ("a" if "b" in stops else "ab")


def sentencepiece_like() -> tuple[Tokenizer, Callable[[str], list[int]]]:
    """A Llama-2 style decoder: ▁ for a space, other characters as bytes <0x..>, the first space dropped."""
    pieces = ["▁", "a", "▁a", "▁▁"] + [f"<0x{byte:02X}>" for byte in range(256)]
    raw = RawTokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )

    def encode(text: str) -> list[int]:
        return [i for char in text for i in ([" a".index(char)] if char in " a" else [4 + b for b in char.encode()])]

    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw)), encode


METASPACE, metaspace_ids = sentencepiece_like()


@settings(max_examples=300, deadline=None)
@given(text=st.text(" aë😀"), stops=STOPS)
def test_a_decoder_that_strips_the_first_space_streams_the_same(text: str, stops: list[str]) -> None:
    ids = metaspace_ids(text)
    assert stream_all(METASPACE.stream(stops), ids) == cut(METASPACE.decode(ids), stops)
