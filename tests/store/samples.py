"""Small real things to store: spans, keys, entries and a clock that only moves when told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings

from semcache.store.aliases import Alias
from semcache.store.blocks import BlockKey, Owner, block_chain, tail_key
from semcache.store.decisions import Decision
from semcache.store.entries import Entry, pack_vector
from semcache.store.evidence import EntryEvidence
from semcache.store.files import Files
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from semcache.store.tensors import KVSpan, Stored, TailRecord, encode
from semcache.store.usage import UsageRecord

# Time is never what fails a test here.
FEW = settings(deadline=None, max_examples=40)

ROOT = "ab" * 32
BLOCK_TOKENS = 4
LAYERS, HEADS, DIM = 2, 2, 4
ALICE = Owner("user:os:1/alice", "os:1/alice", "mini", "fp1")
BOB = Owner("user:os:1/bob", "os:1/bob", "mini", "fp1")
PLENTY = StoreLimits(ram_bytes=1 << 24, disk_bytes=1 << 24)
NO_RAM = StoreLimits(ram_bytes=0, disk_bytes=1 << 24)


class Clock:
    """Seconds since the epoch, set by hand."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def span(num_tokens: int = BLOCK_TOKENS, seed: int = 0, dtype: torch.dtype = torch.float32) -> KVSpan:
    generator = torch.Generator().manual_seed(seed)
    shape = (LAYERS, HEADS, num_tokens, DIM)
    return KVSpan(
        torch.randn(shape, generator=generator).to(dtype),
        torch.randn(shape, generator=generator).to(dtype),
    )


def tail(num_tokens: int = 3, seed: int = 0) -> TailRecord:
    return TailRecord(span(num_tokens, seed), torch.randn(11, generator=torch.Generator().manual_seed(seed)))


def file_bytes(stored: Stored) -> bytearray:
    """The whole file of a block or record."""
    return bytearray(b"".join(encode(stored)))


def chain(num_blocks: int, start: int = 0, root: str = ROOT) -> list[BlockKey]:
    return block_chain(root, range(start, start + num_blocks * BLOCK_TOKENS), BLOCK_TOKENS)


def tail_of(keys: list[BlockKey], num_tokens: int = 3) -> BlockKey:
    first = len(keys) * BLOCK_TOKENS
    return tail_key(ROOT, keys[-1].hash if keys else None, first, range(100, 100 + num_tokens))


def same(left: KVSpan, right: KVSpan) -> bool:
    return torch.equal(left.keys, right.keys) and torch.equal(left.values, right.values)


def put_chain(store: Store, keys: list[BlockKey], owner: Owner = ALICE) -> list[KVSpan]:
    spans = [span(seed=number) for number in range(len(keys))]
    for key, item in zip(keys, spans, strict=True):
        assert store.put_block(key, item, owner)
    return spans


def vector(seed: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def entry(number: int = 0, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "id": f"e_{number:016d}", "scope": ALICE.scope, "model": "mini", "fingerprint": "fp1", "user": ALICE.user,
        "strategy": "per_user", "context_key": "ctx", "params_key": "par", "request_key": f"req{number}",
        "prompt": f"question {number}", "messages": (("system", "be short"), ("user", f"question {number}")),
        "sampling": {"temperature": 0.0, "stop": ["x"]}, "answer": f"answer {number} – ünïcode",
        "answer_tokens": (1, 2, number),
        "finish_reason": "stop", "num_prompt_tokens": 5, "num_completion_tokens": 3, "created_at": 1_000_000.0 + number,
        "embedding": pack_vector(vector(number)), "embedder": "minilm", "compute_ms": 12.5,
    }  # fmt: skip
    return Entry(**(values | changes))


def alias(number: int = 0, key: str | None = None, **changes: Any) -> Alias:
    """Another wording of `entry(number)`."""
    values: dict[str, Any] = {
        "scope": ALICE.scope, "request_key": key or f"alias{number}", "entry_id": entry(number).id,
        "prompt": f"other words for {number}", "user": ALICE.user, "created_at": 1_000_000 + number,
    }  # fmt: skip
    return Alias(**(values | changes))


def evidence(number: int = 0, **changes: Any) -> EntryEvidence:
    values: dict[str, Any] = {
        "entry_id": entry(number).id, "num_same": 3, "num_other": 1, "offset": 0.25, "precision": 2, "num_regrets": 4,
        "mean_regret": 0.125,
    }  # fmt: skip
    return EntryEvidence(**(values | changes))


def decision(number: int = 0, **changes: Any) -> Decision:
    """Whether `entry(number)` may answer request `number`."""
    values: dict[str, Any] = {
        "request_id": f"req_{number}", "at": 1_000_000.0 + number, "scope": ALICE.scope, "user": ALICE.user,
        "entry_id": entry(number).id, "prompt": f"asked {number}", "matched_prompt": f"question {number}",
        "score": 0.9, "p_correct": 0.75, "served": True, "audit": True, "reason": "similar",
        "features": {"margin": 0.5},
    }  # fmt: skip
    return Decision(**(values | changes))


def usage_record(number: int = 0, **changes: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "id": f"req_{number}", "at": 1_000_000.0 + number, "user": ALICE.user, "model": "mini", "outcome": "miss",
        "reason": "empty", "strategy": "per_user", "scope": None, "state": "finished", "prompt": "q", "answer": "a",
        "receipt": {"id": f"req_{number}", "usage": {"total_tokens": 3}}, "prompt_tokens": 10, "cached_tokens": 4,
        "completion_tokens": 6, "saved_ms": 1.5,
    }  # fmt: skip
    return UsageRecord(**(values | changes))


def block_files(data_dir: Path) -> list[Path]:
    return sorted(path for path in (data_dir / "kv").rglob("*") if path.is_file())


class BrokenFiles(Files):
    """The real file system until `fail` says which call fails with which errno."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: dict[str, int] = {}

    def _maybe(self, call: str) -> None:
        if call in self.fail:
            raise OSError(self.fail[call], os.strerror(self.fail[call]))

    def _write(self, path: Path, pieces: Sequence[bytes | memoryview], *, durable: bool) -> None:
        if "write" in self.fail:
            content = b"".join(pieces)
            path.write_bytes(content[: len(content) // 2])  # a full disk stops in the middle
        self._maybe("write")
        super()._write(path, pieces, durable=durable)

    def publish(self, temp: Path, path: Path, *, durable: bool) -> None:
        self._maybe("publish")
        super().publish(temp, path, durable=durable)

    def read(self, path: Path, size_bytes: int) -> memoryview:
        self._maybe("read")
        return super().read(path, size_bytes)

    def unlink(self, path: Path) -> None:
        self._maybe("unlink")
        super().unlink(path)
