"""The file format: safetensors that the library reads, and nothing else is read back."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from semcache.store.tensors import DamageError, KVSpan, TailRecord, checksum, decode, encode

from .samples import FEW, file_bytes, same, span, tail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_round_trip_is_bit_identical(dtype: torch.dtype) -> None:
    original = span(5, dtype=dtype)
    back = decode(file_bytes(original), is_tail=False, num_tokens=5)
    assert isinstance(back, KVSpan)
    assert same(back, original)
    assert back.keys.dtype == dtype


def test_nan_payloads_and_signed_zero_survive() -> None:
    odd = span(2)
    odd.keys.view(torch.int32)[0, 0, 0, 0] = 0x7FC01234
    odd.values[0, 0, 0, 0] = -0.0
    back = decode(file_bytes(odd), is_tail=False, num_tokens=2)
    assert isinstance(back, KVSpan)
    assert torch.equal(back.keys.view(torch.int32), odd.keys.view(torch.int32))
    assert torch.equal(back.values.view(torch.int32), odd.values.view(torch.int32))


def test_the_library_reads_our_files_and_we_read_its() -> None:
    record = tail(3)
    tensors = safetensors.torch.load(bytes(file_bytes(record)))
    assert torch.equal(tensors["keys"], record.span.keys)
    assert torch.equal(tensors["logits"], record.logits)
    theirs = bytearray(safetensors.torch.save(tensors))
    back = decode(theirs, is_tail=True, num_tokens=3)
    assert isinstance(back, TailRecord)
    assert same(back.span, record.span)


def test_keys_and_values_may_differ_in_width_and_be_views() -> None:
    whole = KVSpan(torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 6))
    part = whole.slice(2, 7)
    back = decode(file_bytes(part), is_tail=False, num_tokens=5)
    assert isinstance(back, KVSpan)
    assert same(back, part)
    whole.keys.zero_()
    assert back.keys.abs().sum() > 0


def test_a_tail_may_have_no_tokens() -> None:
    record = tail(0)
    back = decode(file_bytes(record), is_tail=True, num_tokens=0)
    assert isinstance(back, TailRecord)
    assert back.span.keys.shape == record.span.keys.shape
    assert torch.equal(back.logits, record.logits)


def test_a_block_is_not_a_tail() -> None:
    with pytest.raises(DamageError):
        decode(file_bytes(span(3)), is_tail=True, num_tokens=3)
    with pytest.raises(DamageError):
        decode(file_bytes(tail(3)), is_tail=False, num_tokens=3)
    with pytest.raises(DamageError, match="3 tokens"):
        decode(file_bytes(span(3)), is_tail=False, num_tokens=4)


@FEW
@given(st.binary(max_size=64))
def test_any_bytes_are_damage_and_nothing_worse(content: bytes) -> None:
    with pytest.raises(DamageError):
        decode(bytearray(content), is_tail=False, num_tokens=1)


@FEW
@given(st.data())
def test_any_flipped_header_byte_is_damage_or_harmless(data: st.DataObject) -> None:
    content = file_bytes(span(2))
    at = data.draw(st.integers(0, 8 + int.from_bytes(content[:8], "little") - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        decode(content, is_tail=False, num_tokens=2)
    except DamageError:
        return


def test_whole_tensors_are_written_from_where_they_lie() -> None:
    block = span(5)
    _, keys, values = encode(block)
    for piece, tensor in ((keys, block.keys), (values, block.values)):
        assert torch.frombuffer(piece, dtype=torch.uint8).data_ptr() == tensor.data_ptr()


def test_a_checksum_is_of_the_bytes_and_not_of_their_pieces() -> None:
    block = span(5)
    assert checksum(*encode(block)) == checksum(bytes(file_bytes(block)))
