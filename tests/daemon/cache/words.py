"""A small cache whose embeddings are bags of words, so that a test decides what is near."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from semcache.daemon.cache.admit import Admission, PromptKV
from semcache.daemon.cache.embedder import Vector
from semcache.daemon.cache.lookup import Lookup, Match, ModelKey
from semcache.daemon.cache.policy import Policy, ThresholdPolicy
from semcache.daemon.cache.strategy import Access, access
from semcache.daemon.cuts import Cuts
from semcache.daemon.request import CacheOptions, Message, Request, RequestState, Sampling
from semcache.store.entries import Entry
from semcache.store.store import Store
from semcache.store.tensors import KVSpan

MODEL = ModelKey("m", "m-1", "fingerprint", "numerics", cuts=Cuts(32, 32), block_tokens=16)


class WordEmbedder:
    """Bags of words as vectors, so a test decides what is similar; the interface of the real one."""

    name = "words"
    max_tokens = 20

    def num_tokens(self, text: str) -> int:
        return len(text.split())

    def embed(self, text: str) -> Vector:
        vector = np.zeros(256, dtype=np.float32)
        for word in text.lower().strip("?").split():
            vector[zlib.crc32(word.encode()) % 256] += 1
        return vector / np.float32(np.linalg.norm(vector))


class Cache:
    """Look-up and admission over one store, as the service uses them."""

    def __init__(self, store: Store, policy: Policy | None = None, **options: Any) -> None:
        embedder: Any = WordEmbedder()
        self.store = store
        self.lookup = Lookup(store, policy or ThresholdPolicy(0.8), lambda: embedder, **options)
        self.admission = Admission(store, lambda: embedder)

    def find(self, request: Request, granted: Access | None = None, *, preview: bool = False) -> Match:
        return self.lookup.find(request, granted or per_user(request), MODEL, preview=preview)

    def answer(self, request: Request, text: str = "yes", finish_reason: str = "stop", **options: Any) -> Entry:
        """Pretend that the engine answered, and store it; the entry of the first scope."""
        granted = options.get("granted") or per_user(request)
        model = options.get("model", MODEL)
        request.state, request.answer = RequestState.FINISHED, text
        request.output_tokens = list(options.get("tokens", [1, 2, 3]))
        request.finish_reason = finish_reason
        match = self.lookup.find(request, granted, model, preview=True)
        entries = self.admission.store_answer(request, granted, match.identity, model, match.vector, 5.0)
        num = request.num_prompt_tokens
        kv = PromptKV([span(request.prompt_tokens)], torch.arange(8.0), 1.0)
        assert kv.spans[0].num_tokens == num
        assert self.admission.store_kv(request, granted, model, kv)
        return entries[0]


def span(tokens: Sequence[int]) -> KVSpan:
    keys = torch.tensor([float(t) for t in tokens]).reshape(1, 1, -1, 1).expand(2, 2, -1, 4).contiguous()
    return KVSpan(keys, -keys)


def per_user(request: Request) -> Access:
    return access("per_user", user=request.user, allow_global="own")


def asked(prompt: str, *, user: str = "os:1/ann", earlier: tuple[Message, ...] = (), **changed: Any) -> Request:
    sampling = changed.pop("sampling", Sampling(max_tokens=8))
    options = CacheOptions(**changed.pop("options", {}))
    text = "".join(m.content for m in earlier) + prompt
    return Request(
        id="r", user=user, model="m", messages=(*earlier, Message("user", prompt)), sampling=sampling,
        prompt_tokens=changed.pop("tokens", list(text.encode())), options=options, publish=lambda event: None,
    )  # fmt: skip


def told(match: Match) -> tuple[str, str]:
    return match.receipt.outcome.value, match.receipt.reason
