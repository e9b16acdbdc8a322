"""What a finished request writes back, and where. Runs on a pool thread, off the hot path."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from semcache.daemon.cache.embedder import Embedder, Vector
from semcache.daemon.cache.identity import Identity
from semcache.daemon.cache.lookup import ModelKey, PromptKeys
from semcache.daemon.cache.strategy import Access, Scope
from semcache.daemon.request import Request, RequestState
from semcache.store.blocks import BlockKey, Owner, short_key
from semcache.store.entries import Entry, new_entry_id, pack_vector
from semcache.store.store import Store
from semcache.store.tensors import KVSpan, TailRecord


@dataclass(frozen=True)
class PromptKV:
    """KV of one request on the host: spans that together cover its prompt from `first_token` on, and its last logits.

    What lies before was restored from where it would be stored. Where decode-computed KV may be reused the spans go on
    through the answer, as far as it was computed.
    """

    spans: Sequence[KVSpan]
    logits: torch.Tensor  # [vocab], float32
    prefill_ms_per_token: float
    first_token: int = 0

    @property
    def num_tokens(self) -> int:
        """Where the spans end."""
        return self.first_token + sum(span.num_tokens for span in self.spans)

    def part(self, start: int, stop: int) -> KVSpan:
        """Tokens [start, stop), none before `first_token`."""
        return cut(self.spans, start - self.first_token, stop - self.first_token)


class Admission:
    """Writes answers and KV into every scope that the request's strategy writes."""

    def __init__(
        self,
        store: Store,
        embedder: Callable[[], Embedder | None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._clock = clock

    def store_kv(self, request: Request, access: Access, model: ModelKey, kv: PromptKV, *, tail: bool = True) -> bool:
        """Store what is missing of the blocks and, unless told otherwise, the prompt's full-prompt record.

        True when all is in place.
        """
        are_complete = [self._store_kv(request, scope, model, kv, tail=tail) for scope in access.write]
        return all(are_complete)

    def _store_kv(self, request: Request, scope: Scope, model: ModelKey, kv: PromptKV, *, tail: bool) -> bool:
        owner = Owner(scope=scope.name, user=request.user, model=model.folder_id, fingerprint=model.fingerprint)
        keys = PromptKeys.of(scope, model, request.prompt_tokens)
        blocks = keys.blocks
        if (num_answered := kv.num_tokens - request.num_prompt_tokens) > 0:
            answered = [*request.prompt_tokens, *request.output_tokens[:num_answered]]
            blocks = _with_the_rest(PromptKeys.of(scope, model, answered))
        missing = self._store.missing([*blocks, keys.tail] if tail else blocks)
        if any(key.first_token < kv.first_token for key in missing):
            return False  # dropped since it was restored: what lies behind would not be found, and is computed again
        complete = True
        for key in missing:
            span = kv.part(key.first_token, key.first_token + len(key.token_ids))
            cost_ms = kv.prefill_ms_per_token * max(1, span.num_tokens)
            if key.kind == "tail":
                complete &= self._store.put_tail(key, TailRecord(span, kv.logits), owner, compute_ms=cost_ms)
            else:
                complete &= self._store.put_block(key, span, owner, compute_ms=cost_ms)
        return complete

    def entry_of(self, request: Request, identity: Identity, model: ModelKey, scope: Scope, vector: Vector | None,
                 compute_ms: float) -> Entry:  # fmt: skip
        """The row that lets this answer be found again in `scope`."""
        now = self._clock()
        embedder = self._embedder()
        return Entry(
            id=new_entry_id(now), scope=scope.name, model=model.name, fingerprint=model.fingerprint,
            user=request.user, strategy=request.options.strategy, context_key=identity.context_key,
            params_key=identity.params_key, request_key=identity.request_key, prompt=request.last_user_message,
            messages=tuple((m.role, m.content) for m in request.messages), sampling=asdict(request.sampling),
            answer=request.answer,
            answer_tokens=tuple(request.output_tokens), finish_reason=request.finish_reason or "stop",
            num_prompt_tokens=request.num_prompt_tokens, num_completion_tokens=len(request.output_tokens),
            embedding=pack_vector(vector) if vector is not None else None,
            embedder=embedder.name if embedder is not None and vector is not None else None,
            created_at=now, last_used_at=now, hits=0, pinned=False, compute_ms=compute_ms,
        )  # fmt: skip

    def embed(self, request: Request) -> Vector | None:
        """The vector to store with the answer, where the look-up had no need of one."""
        embedder = self._embedder()
        prompt = request.last_user_message
        if embedder is None or embedder.num_tokens(prompt) > embedder.max_tokens:
            return None
        return embedder.embed(prompt)

    def store_answer(self, request: Request, access: Access, identity: Identity, model: ModelKey,
                     vector: Vector | None, compute_ms: float) -> list[Entry]:  # fmt: skip
        """Write the answer into every scope; returns the entries that are now stored."""
        if vector is None:
            vector = self.embed(request)
        entries = [self.entry_of(request, identity, model, scope, vector, compute_ms) for scope in access.write]
        names = [PromptKeys.of(scope, model, request.prompt_tokens).names for scope in access.write]
        pairs = zip(entries, names, strict=True)
        return [entry for entry, blocks in pairs if self._store.put_entry(entry, blocks)]


def _with_the_rest(keys: PromptKeys) -> list[BlockKey]:
    """All full blocks, and what is left behind the last one as a short block: no logits are known there."""
    rest = keys.tail
    if not rest.token_ids:
        return keys.blocks
    return [*keys.blocks, short_key(keys.root, rest.parent, rest.first_token, rest.token_ids)]


def may_store(request: Request, *, replayable: bool) -> bool:
    """Whether the finished request's answer is worth a row: complete, wanted, and one that may be replayed."""
    return request.state is RequestState.FINISHED and wants_storing(request) and replayable


def wants_storing(request: Request) -> bool:
    return not request.options.no_store and request.options.mode.allows_prefix


def cut(spans: Sequence[KVSpan], start: int, stop: int) -> KVSpan:
    """Tokens [start, stop) of spans that cover consecutive positions from 0."""
    pieces, position = [], 0
    for span in spans:
        low, high = max(start - position, 0), min(stop - position, span.num_tokens)
        if low < high:
            pieces.append(span.slice(low, high))
        position += span.num_tokens
    if not pieces:
        return spans[-1].slice(0, 0)
    if len(pieces) == 1:
        return pieces[0]
    return KVSpan(torch.cat([p.keys for p in pieces], dim=2), torch.cat([p.values for p in pieces], dim=2))
