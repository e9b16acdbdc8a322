"""KV of consecutive tokens, the one tensor type that engine, cache and store exchange, and its file format.

A file is safetensors and nothing else. It is packed and unpacked here because the library copies every tensor twice on
the way in; ours are views into the file's own bytes. What a file *means* (which tokens, whose) is in its row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bits are copied as integers: numpy knows no bfloat16.
_SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_ALIGN_BYTES = 64


class DamageError(Exception):
    """Stored bytes are not what was written; the message says how. Never leaves the store."""


@dataclass(frozen=True)
class KVSpan:
    """Keys and values of `num_tokens` consecutive positions, in the model's compute dtype, on the host.

    Keys are stored after rotary embedding, so a span is valid only at the positions it was computed for.
    """

    keys: Tensor  # [num_layers, num_kv_heads, num_tokens, key_dim]
    values: Tensor  # [num_layers, num_kv_heads, num_tokens, value_dim]

    @property
    def num_tokens(self) -> int:
        return self.keys.shape[2]

    @property
    def size_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def slice(self, start: int, stop: int) -> KVSpan:
        """Tokens [start, stop) as a view."""
        return KVSpan(self.keys[:, :, start:stop], self.values[:, :, start:stop])


def leading(spans: Sequence[KVSpan], num_tokens: int) -> list[KVSpan]:
    """The first tokens of spans that follow each other; the last one may be cut short."""
    kept: list[KVSpan] = []
    for span in spans:
        if num_tokens <= 0:
            break
        kept.append(span if span.num_tokens <= num_tokens else span.slice(0, num_tokens))
        num_tokens -= span.num_tokens
    return kept


@dataclass(frozen=True)
class TailRecord:
    """The end of one prompt: KV of its last partial block (maybe of 0 tokens) and what follows the last position."""

    span: KVSpan
    logits: Tensor  # [vocab], float32

    @property
    def size_bytes(self) -> int:
        return self.span.size_bytes + self.logits.nbytes


Stored = KVSpan | TailRecord


def compact(stored: Stored) -> Stored:
    """The same, with tensors that keep nothing else in memory: a view keeps all that it is a view of."""
    if isinstance(stored, TailRecord):
        return TailRecord(KVSpan(_alone(stored.span.keys), _alone(stored.span.values)), _alone(stored.logits))
    return KVSpan(_alone(stored.keys), _alone(stored.values))


def _alone(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    np.copyto(_bits(copy), _bits(tensor.detach()))
    return copy


def checksum(*pieces: bytes | memoryview) -> str:
    """xxh3-128 over the whole file: a flip in the header changes shapes, one in the data changes numbers."""
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def encode(stored: Stored) -> list[memoryview]:
    """The bytes of a block file or tail record, in pieces; tensors that lie in one piece are not copied."""
    span = stored.span if isinstance(stored, TailRecord) else stored
    tensors = {"keys": span.keys, "values": span.values}
    if isinstance(stored, TailRecord):
        tensors["logits"] = stored.logits
    header: dict[str, Any] = {}
    num_bytes = 0
    for name, tensor in tensors.items():
        start, num_bytes = num_bytes, num_bytes + tensor.nbytes
        dtype = _DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, num_bytes]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN_BYTES)  # the format allows blanks; they align the tensors
    head = len(text).to_bytes(8, "little") + text
    # numpy cannot view an empty range as bytes.
    filled = [np.ascontiguousarray(_bits(tensor.detach())) for tensor in tensors.values() if tensor.numel()]
    return [memoryview(head), *(array.reshape(-1).view(np.uint8).data for array in filled)]


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(_SAME_SIZE[tensor.element_size()]).numpy()


def _tensor(content: memoryview, spec: Mapping[str, Any]) -> Tensor:
    """One tensor as a view into the file's bytes."""
    dtype, shape = DTYPES[spec["dtype"]], spec["shape"]
    start, stop = spec["data_offsets"]
    first = 8 + int.from_bytes(content[:8], "little")
    count = math.prod(shape)
    if min(shape) < 0 or start < 0 or stop - start != count * dtype.itemsize or first + stop > len(content):
        raise DamageError(f"{spec} does not fit into {len(content)} bytes")
    if count == 0:
        return torch.empty(shape, dtype=dtype)  # frombuffer refuses an empty range
    return torch.frombuffer(content, dtype=dtype, count=count, offset=first + start).view(shape)


def decode(content: memoryview, *, is_tail: bool, num_tokens: int) -> Stored:
    """The reverse of `encode`, as views into `content`; raises DamageError for anything that is not exactly that."""
    try:
        header = json.loads(bytes(content[8 : 8 + int.from_bytes(content[:8], "little")]))
        tensors = {name: _tensor(content, spec) for name, spec in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise DamageError(f"not a safetensors file of ours: {error!r}") from error
    wanted = {"keys", "values", "logits"} if is_tail else {"keys", "values"}
    if set(tensors) != wanted:
        raise DamageError(f"tensors are {sorted(tensors)}, not {sorted(wanted)}")
    keys, values = tensors["keys"], tensors["values"]
    if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3] or keys.dtype != values.dtype:
        raise DamageError(f"shapes {tuple(keys.shape)} and {tuple(values.shape)} do not fit together")
    if keys.shape[2] != num_tokens:
        raise DamageError(f"holds {keys.shape[2]} tokens, its row says {num_tokens}")
    span = KVSpan(keys, values)
    if not is_tail:
        return span
    logits = tensors["logits"]
    if logits.dim() != 1 or logits.dtype != torch.float32:
        raise DamageError(f"logits are {logits.dtype} {tuple(logits.shape)}, not one float32 row")
    return TailRecord(span, logits)
