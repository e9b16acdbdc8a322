"""A cache of any size made of small real things, and look-ups in it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from semcache.daemon.cache.embedder import Embedder, Vector
from semcache.daemon.cache.identity import chain_root, identify
from semcache.daemon.cache.lookup import Lookup, ModelKey
from semcache.daemon.cache.policy import ThresholdPolicy
from semcache.daemon.cache.strategy import access, user_scope
from semcache.daemon.cuts import Cuts
from semcache.daemon.request import CacheOptions, Message, Request, Sampling
from semcache.store.blocks import BlockKey, Owner, block_chain
from semcache.store.entries import Entry, new_entry_id, pack_vector
from semcache.store.limits import StoreLimits
from semcache.store.store import Store
from semcache.store.tensors import KVSpan

DIM = 384
BLOCK_TOKENS = 16
_BLOCKS_PER_PROMPT = 8
_USER = "os:0"
_MODEL = ModelKey(
    "bench", "bench", "bench-fingerprint", "bench-numerics", Cuts(BLOCK_TOKENS, BLOCK_TOKENS), BLOCK_TOKENS
)
_SCOPE = user_scope(_USER)
_OWNER = Owner(_SCOPE.name, _USER, _MODEL.folder_id, _MODEL.fingerprint)
_SAMPLING = Sampling()
# No RAM tier: a small cache would be looked up in RAM and a large one on disk.
_LIMITS = StoreLimits(ram_bytes=0, disk_bytes=1 << 40)


def open_store(home: Path) -> Store:
    return Store.open(home, _LIMITS)


def fill(home: Path, first: int, size: int) -> dict[str, float]:
    """Add entries and blocks from number `first` up to `size`; the mean time of writing each."""
    store = open_store(home)
    try:
        started = time.perf_counter()
        for number in range(first, size):
            if not store.put_entry(_entry(number)):
                raise RuntimeError(f"entry {number} could not be written")
        put_entry_s = time.perf_counter() - started
        shape = (1, 1, BLOCK_TOKENS, 1)
        span = KVSpan(torch.zeros(shape), torch.ones(shape))
        started = time.perf_counter()
        for number in range(first, size):
            if not store.put_block(_block(number), span, _OWNER):
                raise RuntimeError(f"block {number} could not be written")
        put_block_s = time.perf_counter() - started
    finally:
        store.close()
    num = size - first
    return {"put_entry_ms": put_entry_s / num * 1e3, "put_block_ms": put_block_s / num * 1e3}


class Grown:
    """Look-ups in a filled cache, timed in milliseconds."""

    def __init__(self, store: Store, size: int) -> None:
        self._store = store
        self._size = size
        self._embedder = _Ready()
        # No text is ever this similar, so the policy sees candidates and serves none.
        self._lookup = Lookup(store, ThresholdPolicy(1.0), lambda: self._embedder)
        self._granted = access("per_user", user=_USER, allow_global="own")
        self._rng = np.random.default_rng(1)

    def lookup_ms(self) -> float:
        """A question that is not stored, with a prompt that is not stored either."""
        number = self._size + int(self._rng.integers(1 << 24))
        match = self._lookup.find(_request(number, _prompt(number)), self._granted, _MODEL)
        assert match.answer is None
        assert match.receipt.score is not None, "no neighbour was found"
        return match.lookup_ms

    def exact_ms(self) -> float:
        """A question that is stored."""
        number = int(self._rng.integers(self._size))
        match = self._lookup.find(_request(number, _prompt(number)), self._granted, _MODEL)
        assert match.answer is not None
        assert match.answer.prompt == _question(number)
        return match.lookup_ms

    def prefix_ms(self) -> float:
        """The KV of a prompt whose blocks are stored."""
        number = int(self._rng.integers(self._size)) // _BLOCKS_PER_PROMPT * _BLOCKS_PER_PROMPT
        keys = block_chain(_root(), _prompt(number), BLOCK_TOKENS)
        started = time.perf_counter()
        spans = self._store.load_prefix(keys)
        took_ms = (time.perf_counter() - started) * 1e3
        assert len(spans) == min(_BLOCKS_PER_PROMPT, self._size - number)
        return took_ms


class _Ready(Embedder):
    """Gives a vector that depends on the text, without a model."""

    def __init__(self) -> None:
        self.name = "ready"
        self.max_tokens = 256

    def num_tokens(self, text: str) -> int:
        return len(text.split())

    def embed(self, text: str) -> Vector:
        return _vector(int(text.split()[2]))


def _vector(number: int) -> Vector:
    drawn = np.random.default_rng(number).standard_normal(DIM, dtype=np.float32)
    unit: Vector = drawn / np.linalg.norm(drawn)
    return unit


def _question(number: int) -> str:
    return f"question number {number} about something"


def _prompt(number: int) -> list[int]:
    """Prompts of eight blocks that share nothing."""
    start = number // _BLOCKS_PER_PROMPT * _BLOCKS_PER_PROMPT * BLOCK_TOKENS
    return list(range(start, start + _BLOCKS_PER_PROMPT * BLOCK_TOKENS))


def _root() -> str:
    return chain_root(_SCOPE.name, _MODEL.fingerprint, _MODEL.numerics)


def _block(number: int) -> BlockKey:
    return block_chain(_root(), _prompt(number), BLOCK_TOKENS)[number % _BLOCKS_PER_PROMPT]


def _request(number: int, tokens: list[int]) -> Request:
    return Request(
        id="bench", user=_USER, model=_MODEL.name, messages=(Message("user", _question(number)),), prompt_tokens=tokens,
        sampling=_SAMPLING, options=CacheOptions(), publish=lambda event: None,
    )  # fmt: skip


def _entry(number: int) -> Entry:
    request = _request(number, _prompt(number))
    identity = identify(_MODEL.fingerprint, request)
    now_s = time.time()
    return Entry(
        id=new_entry_id(now_s), scope=_SCOPE.name, model=_MODEL.name, fingerprint=_MODEL.fingerprint, user=_USER,
        strategy="per_user", context_key=identity.context_key, params_key=identity.params_key,
        request_key=identity.request_key, prompt=request.last_user_message,
        messages=(("user", request.last_user_message),), sampling=asdict(_SAMPLING), answer=f"answer {number}",
        answer_tokens=(number,), finish_reason="stop", num_prompt_tokens=128, num_completion_tokens=1,
        created_at=now_s, embedding=pack_vector(_vector(number)), embedder="ready",
    )  # fmt: skip
