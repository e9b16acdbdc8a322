"""What makes stored KV valid: the fingerprint of the model and the numerics of what computes it.

The fingerprint says which function is computed, the numerics string says with which last bits, where they count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
import transformers

from semcache.config import Exactness
from semcache.daemon.engine.attention import ATTENTION_NAME, ATTENTION_VERSION
from semcache.daemon.engine.machine import processor_digest
from semcache.daemon.engine.source import weight_files

_EDGE_BYTES = 64 * 1024
_PAGE_BYTES = 4096
_NUM_PAGES = 64
# Everything besides weights that decides tokens in and tokens out: configuration with RoPE parameters, tokens that end
# an answer (generation_config.json), vocabularies of every kind, templates.
_TEXT_SUFFIXES = frozenset({".json", ".jinja", ".model", ".tiktoken"})
_VOCABULARIES = frozenset({"merges.txt", "vocab.txt"})


def model_fingerprint(folder: Path, dtype: str) -> str:
    """SHA-256 over dtype, configuration, tokenizer, templates, and the headers and sampled pages of all weight files.

    The dtype is part of the function: answers in bfloat16 are not those in float32.
    """
    digest = hashlib.sha256(f"semcache.model/2 adapter=none dtype={dtype}".encode())
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix in _TEXT_SUFFIXES or path.name in _VOCABULARIES):
            _add(digest, path.name.encode(), path.read_bytes())
    for path in weight_files(folder):
        size_bytes = path.stat().st_size
        _add(digest, path.name.encode(), size_bytes.to_bytes(8, "little"))
        with path.open("rb") as file:
            for offset, length in _sampled(file, size_bytes):
                _add(digest, b"page", _read(file, offset, length))
    return digest.hexdigest()


def numerics(
    device: str, dtype: str, prefill_chunk_tokens: int, code: str, trial: str, exactness: Exactness = "bitwise"
) -> str:
    """Everything besides the model that decides the last bits of KV and logits on this machine.

    `code` names what multiplies and what runs the layers. `trial` is the digest of what a first computation gave: it
    stands for what no list is complete of, such as settings of the libraries underneath. The rest says in words why two
    of them differ, and covers what a trial cannot reach.
    In `rounding` these do not count: KV of any machine is met that has the same dtype, and none of `bitwise`.
    """
    if exactness == "rounding":
        return f"rounding;{dtype}"
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        processor = f"cuda/{torch.cuda.get_device_name(device)}/sm{major}{minor}/cuda{torch.version.cuda}"
    else:
        capability = f"{torch.backends.cpu.get_cpu_capability()}/{processor_digest()}"
        processor = f"cpu/{capability}/threads{torch.get_num_threads()}"
    return ";".join(
        (
            processor,
            f"torch{torch.__version__}",
            f"transformers{transformers.__version__}",
            f"chunk{prefill_chunk_tokens}",
            f"{ATTENTION_NAME}{ATTENTION_VERSION}",
            code,
            dtype,
            f"trial{trial}",
        )
    )


def _sampled(file: BinaryIO, size_bytes: int) -> Iterator[tuple[int, int]]:
    """The whole header, both edges, the first and middle page of every tensor, and evenly spaced pages.

    Hashing 100 GB would take minutes at every start. An edited tensor shows in its own pages.
    """
    header_bytes = min(int.from_bytes(_read(file, 0, 8), "little"), size_bytes) + 8
    yield 0, header_bytes
    yield header_bytes, _EDGE_BYTES
    yield max(0, size_bytes - _EDGE_BYTES), _EDGE_BYTES
    for start, stop in _tensors(_read(file, 8, header_bytes - 8)):
        for offset in {start, (start + stop) // 2}:
            yield header_bytes + offset, min(_PAGE_BYTES, stop - offset)
    span = max(0, size_bytes - header_bytes - _PAGE_BYTES)
    for page in range(_NUM_PAGES):
        yield header_bytes + span * page // (_NUM_PAGES - 1), _PAGE_BYTES


def _tensors(header: bytes) -> list[tuple[int, int]]:
    """Where each tensor's bytes lie behind the header; none where that cannot be read, which loading will refuse."""
    try:
        about = json.loads(header)
        return sorted((int(start), int(stop)) for name, tensor in about.items() if name != "__metadata__"
                      for start, stop in [tensor["data_offsets"]])  # fmt: skip
    except (ValueError, AttributeError, TypeError, LookupError):
        return []


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _add(digest: hashlib._Hash, label: bytes, content: bytes) -> None:
    # Lengths keep neighbouring parts apart.
    digest.update(b"%d:%s:%d:" % (len(label), label, len(content)))
    digest.update(content)
