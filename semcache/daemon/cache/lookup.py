"""What may be reused for one request: exact key first, then a similar prompt, then the longest KV prefix.

Runs on a pool thread. Knows scopes and promises, not engines: it hands over host tensors and says what they cover.
Any damage below is a miss with a reason, never an exception.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from semcache.daemon.cache.embedder import Embedder, Vector
from semcache.daemon.cache.identity import Identity, chain_root, fits, identify
from semcache.daemon.cache.policy import Candidate, Policy
from semcache.daemon.cache.strategy import Access, Scope
from semcache.daemon.request import Outcome, Receipt, Request
from semcache.store.blocks import BlockKey, block_chain, tail_key
from semcache.store.entries import Entry
from semcache.store.store import Store
from semcache.store.tensors import KVSpan
from semcache.store.vectors import Partition

# Nearest neighbours shown to the policy.
NUM_CANDIDATES = 5


@dataclass(frozen=True)
class ModelKey:
    """What KV and answers of the loaded model are keyed by."""

    name: str
    folder_id: str
    fingerprint: str
    numerics: str
    prefill_chunk_tokens: int
    block_tokens: int


@dataclass(frozen=True)
class PromptKeys:
    """The block chain of a prompt in one scope: full chunks as blocks, the rest as one full-prompt record."""

    blocks: list[BlockKey]
    tail: BlockKey

    @staticmethod
    def of(scope: Scope, model: ModelKey, prompt_tokens: Sequence[int]) -> PromptKeys:
        root = chain_root(scope.name, model.fingerprint, model.numerics)
        num_chunked = len(prompt_tokens) // model.prefill_chunk_tokens * model.prefill_chunk_tokens
        blocks = block_chain(root, prompt_tokens[:num_chunked], model.block_tokens)
        parent = blocks[-1].hash if blocks else None
        return PromptKeys(blocks, tail_key(root, parent, num_chunked, prompt_tokens[num_chunked:]))


@dataclass
class Match:
    """The result of a look-up; `answer` is set for exact and semantic."""

    receipt: Receipt
    identity: Identity
    answer: Entry | None = None
    vector: Vector | None = None
    spans: list[KVSpan] = field(default_factory=list)
    num_restored: int = 0
    prompt_logits: object | None = None
    embed_ms: float | None = None
    lookup_ms: float = 0.0


class Lookup:
    """Looks one request up in the scopes it may read."""

    def __init__(
        self,
        store: Store,
        policy: Policy,
        embedder: Callable[[], Embedder | None],
        *,
        reuse_sampled: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.policy = policy
        self._embedder = embedder
        self._reuse_sampled = reuse_sampled
        self._clock = clock

    def find(self, request: Request, access: Access, model: ModelKey) -> Match:
        """Walk down the ladder; the receipt carries the reason why no higher rung served."""
        started = time.perf_counter()
        match = Match(self._receipt(request, Outcome.MISS, "disabled"), identify(model.fingerprint, request))
        if access.read and request.options.mode.allows_prefix:
            self._find_answer(request, access, match)
            if match.answer is None and not request.options.cached_only:
                self._find_prefix(request, access, model, match)
        match.lookup_ms = (time.perf_counter() - started) * 1e3 - (match.embed_ms or 0.0)
        return match

    def may_replay(self, request: Request) -> bool:
        """Whether a stored answer may stand for this request at all."""
        return request.sampling.is_repeatable or self._reuse_sampled

    # Answers

    def _find_answer(self, request: Request, access: Access, match: Match) -> None:
        if not request.options.mode.allows_exact or request.options.refresh:
            match.receipt = self._receipt(request, Outcome.MISS, "disabled")
        elif not self.may_replay(request):
            match.receipt = self._receipt(request, Outcome.MISS, "params")
        elif not self._find_exact(request, access, match) and request.options.mode.allows_semantic:
            self._find_semantic(request, access, match)

    def _find_exact(self, request: Request, access: Access, match: Match) -> bool:
        for scope in access.read:
            for entry in self.store.find_exact(scope.name, match.identity.request_key):
                if _serves(entry, request):
                    self._serve(request, match, entry, scope, Outcome.EXACT, "identical", None)
                    return True
        match.receipt = self._receipt(request, Outcome.MISS, "no_candidate")
        return False

    def _find_semantic(self, request: Request, access: Access, match: Match) -> None:
        embedder = self._embedder()
        if embedder is None:
            match.receipt = self._receipt(request, Outcome.MISS, "disabled")
            return
        prompt = request.last_user_message
        if embedder.num_tokens(prompt) > embedder.max_tokens:
            match.receipt = self._receipt(request, Outcome.MISS, "too_long")
            return
        identity = match.identity
        partition = Partition(identity.fingerprint, identity.context_key, identity.params_key, embedder.name)
        if not any(self.store.has_neighbours(scope.name, partition) for scope in access.read):
            # Nobody to compare with: the embedding is made when the answer is stored, off the hot path.
            empty = not any(self.store.has_neighbours(scope.name, None) for scope in access.read)
            match.receipt = self._receipt(request, Outcome.MISS, "empty" if empty else "no_candidate")
            return
        started = time.perf_counter()
        match.vector = embedder.embed(prompt)
        match.embed_ms = (time.perf_counter() - started) * 1e3
        found = self._neighbours(request, access, match.vector, partition)
        candidates = [Candidate(entry.id, entry.prompt, score) for _scope, entry, score in found]
        verdict = self.policy.decide(prompt, candidates)
        chosen = next((f for f in found if verdict.candidate and f[1].id == verdict.candidate.entry_id), None)
        if verdict.serve and chosen is not None:
            scope, entry, score = chosen
            self._serve(request, match, entry, scope, Outcome.SEMANTIC, verdict.reason, score)
        elif chosen is not None:
            scope, entry, score = chosen
            match.receipt = self._receipt(
                request, Outcome.MISS, verdict.reason, score=score, entry_id=entry.id, matched_prompt=entry.prompt,
                entry_age_s=max(0.0, self._clock() - entry.created_at),
            )  # fmt: skip
        else:
            match.receipt = self._receipt(request, Outcome.MISS, verdict.reason)

    def _neighbours(
        self, request: Request, access: Access, vector: Vector, partition: Partition
    ) -> list[tuple[Scope, Entry, float]]:
        """Servable neighbours over all readable scopes, best first; a tie goes to the scope that is read first."""
        found = [
            (scope, entry, score)
            for scope in access.read
            for entry, score in self.store.nearest(scope.name, vector, NUM_CANDIDATES, partition)
            # An answer cut by its limit says less than the other wording's own would.
            if _serves(entry, request) and entry.finish_reason != "length"
        ]
        return sorted(found, key=lambda item: -item[2])

    def _serve(
        self, request: Request, match: Match, entry: Entry, scope: Scope, outcome: Outcome, reason: str,
        score: float | None,
    ) -> None:  # fmt: skip
        self.store.touch_entry(entry.id)
        match.answer = entry
        match.receipt = self._receipt(
            request, outcome, reason, scope=scope.kind, score=score, entry_id=entry.id, matched_prompt=entry.prompt,
            entry_age_s=max(0.0, self._clock() - entry.created_at),
        )  # fmt: skip

    # KV

    def _find_prefix(self, request: Request, access: Access, model: ModelKey, match: Match) -> None:
        """Restore from the scope that covers most of the prompt; at least the last position's logits are needed."""
        for scope in access.read:
            keys = PromptKeys.of(scope, model, request.prompt_tokens)
            spans = self.store.load_prefix(keys.blocks)
            num_restored = sum(span.num_tokens for span in spans)
            logits = None
            if len(spans) == len(keys.blocks) and (tail := self.store.load_tail(keys.tail)) is not None:
                spans = [*spans, tail.span] if tail.span.num_tokens else spans
                num_restored, logits = request.num_prompt_tokens, tail.logits
            else:
                num_restored = _cut(num_restored, request.num_prompt_tokens, model.prefill_chunk_tokens)
                spans = spans[: num_restored // model.block_tokens]  # blocks tile a chunk
            if num_restored > match.num_restored:
                match.spans, match.num_restored, match.prompt_logits = spans, num_restored, logits
                why_not = match.receipt
                match.receipt = self._receipt(
                    request, Outcome.PREFIX, why_not.reason, scope=scope.kind, score=why_not.score,
                    entry_id=why_not.entry_id, matched_prompt=why_not.matched_prompt,
                    entry_age_s=why_not.entry_age_s, prefix_tokens=num_restored,
                )  # fmt: skip

    def _receipt(self, request: Request, outcome: Outcome, reason: str, **found: object) -> Receipt:
        return Receipt(outcome=outcome, reason=reason, strategy=request.options.strategy, **found)  # type: ignore[arg-type]


def _serves(entry: Entry, request: Request) -> bool:
    return fits(request.sampling, entry.finish_reason, entry.num_completion_tokens)


def _cut(num_tokens: int, num_prompt_tokens: int, chunk: int) -> int:
    """The largest chunk boundary that is covered and leaves at least one token to compute.

    Cutting only there makes a warm run execute the same kernels on the same shapes as a cold one.
    """
    return min(num_tokens, num_prompt_tokens - 1) // chunk * chunk
