"""What makes stored KV valid: the fingerprint of the model and the numerics of this machine.

The fingerprint says which function is computed, the numerics string says with which last bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
import transformers

from semcache.daemon.engine.attention import ATTENTION_NAME, ATTENTION_VERSION
from semcache.daemon.engine.machine import processor_digest
from semcache.daemon.engine.source import weight_files

_EDGE_BYTES = 64 * 1024
_PAGE_BYTES = 4096
_NUM_PAGES = 64
# Everything besides weights that decides tokens in and logits out; RoPE parameters are in config.json.
_TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over configuration, tokenizer, chat template, and the headers and sampled pages of all weight files."""
    digest = hashlib.sha256(b"semcache.model/1 adapter=none")
    for name in _TEXT_FILES:
        path = folder / name
        _add(digest, name.encode(), path.read_bytes() if path.is_file() else b"")
    for path in weight_files(folder):
        size_bytes = path.stat().st_size
        _add(digest, path.name.encode(), size_bytes.to_bytes(8, "little"))
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            for offset, length in _sampled(size_bytes, min(header_bytes, size_bytes) + 8):
                _add(digest, b"page", _read(file, offset, length))
    return digest.hexdigest()


def numerics(device: str, dtype: str, prefill_chunk_tokens: int, products: str) -> str:
    """Everything besides the model that decides the last bits of KV and logits on this machine."""
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
            products,
            dtype,
        )
    )


def _sampled(size_bytes: int, header_bytes: int) -> Iterator[tuple[int, int]]:
    """The whole header, both edges, and evenly spaced pages: hashing 100 GB would take minutes at every start."""
    yield 0, header_bytes
    yield header_bytes, _EDGE_BYTES
    yield max(0, size_bytes - _EDGE_BYTES), _EDGE_BYTES
    span = max(0, size_bytes - header_bytes - _PAGE_BYTES)
    for page in range(_NUM_PAGES):
        yield header_bytes + span * page // (_NUM_PAGES - 1), _PAGE_BYTES


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _add(digest: hashlib._Hash, label: bytes, content: bytes) -> None:
    # Lengths keep neighbouring parts apart.
    digest.update(b"%d:%s:%d:" % (len(label), label, len(content)))
    digest.update(content)
