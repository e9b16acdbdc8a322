"""What may be reused for one request: exact key, then a similar prompt or a donor, then the longest KV prefix.

Runs on a pool thread. Knows scopes and promises, not engines: it hands over host tensors and says what they cover.
Any damage below is a miss with a reason, never an exception.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from semcache.daemon.cache.embedder import Embedder, Vector
from semcache.daemon.cache.identity import Identity, chain_root, fits, identify
from semcache.daemon.cache.marks import MarkedPairs
from semcache.daemon.cache.policy import Policy, Verdict
from semcache.daemon.cache.similar import Neighbour, Similarity
from semcache.daemon.cache.strategy import Access, Scope
from semcache.daemon.cuts import Cuts
from semcache.daemon.request import Donor, Outcome, Receipt, Request
from semcache.store.blocks import BlockKey, Continuation, block_chain, tail_key
from semcache.store.entries import Entry
from semcache.store.store import Store
from semcache.store.tensors import KVSpan, leading

# Both speeds vary on a busy machine; loading is left out only where it is clearly the slower way.
_CLEARLY = 2.0


@dataclass(frozen=True)
class ModelKey:
    """What KV and answers of the loaded model are keyed by."""

    name: str
    folder_id: str
    fingerprint: str
    numerics: str
    cuts: Cuts
    block_tokens: int


@dataclass(frozen=True)
class PromptKeys:
    """The block chain of a prompt in one scope: what a cut can leave as blocks, the rest as one full-prompt record."""

    root: str
    blocks: list[BlockKey]
    tail: BlockKey

    @staticmethod
    def of(scope: Scope, model: ModelKey, prompt_tokens: Sequence[int]) -> PromptKeys:
        root = chain_root(scope.name, model.fingerprint, model.numerics)
        # Where any number of tokens can be reused, first blocks are children too, so that the nearest of them is found.
        origin = root if model.cuts.are_anywhere else None
        num_cut = model.cuts.last(len(prompt_tokens))
        blocks = block_chain(root, prompt_tokens[:num_cut], model.block_tokens, parent=origin)
        first = len(blocks) * model.block_tokens
        parent = blocks[-1].hash if blocks else origin
        return PromptKeys(root, blocks, tail_key(root, parent, first, prompt_tokens[first:]))

    @property
    def num_tokens(self) -> int:
        return self.tail.first_token + len(self.tail.token_ids)

    @property
    def names(self) -> list[str]:
        """What the store calls all of it."""
        return [key.hash for key in (*self.blocks, self.tail)]

    def behind(self, num_blocks: int) -> Continuation:
        """What the prompt goes on with behind so many of its blocks; only where reuse is cut anywhere."""
        parent = self.blocks[num_blocks - 1].hash if num_blocks else self.root
        rest = (*self.blocks[num_blocks:], self.tail)
        return Continuation(self.root, parent, rest[0].first_token, tuple(t for key in rest for t in key.token_ids))


@dataclass
class Match:
    """The result of a look-up; `answer` is set for exact and semantic."""

    receipt: Receipt
    identity: Identity
    answer: Entry | None = None
    served_from: Scope | None = None
    verdict: Verdict | None = None
    donors: tuple[Neighbour, ...] = ()
    vector: Vector | None = None
    spans: list[KVSpan] = field(default_factory=list)
    num_restored: int = 0
    num_stored: int = 0  # of those, by the prompt's own names and in every scope that the request writes
    prompt_logits: object | None = None
    # What is to cover the prompt instead of `spans`: read as it is asked for, and short where it turns out damaged.
    arriving: Generator[KVSpan, None, None] | None = None
    embed_ms: float | None = None
    lookup_ms: float = 0.0

    def give_kv(self, request: Request) -> None:
        """Let the request, and nobody else, have what was found of its KV."""
        request.restored, self.spans = self.spans, []
        request.num_restored, request.num_stored = self.num_restored, self.num_stored
        request.prompt_logits, request.is_arriving = self.prompt_logits, self.arriving is not None


class Lookup:
    """Looks one request up in the scopes it may read."""

    def __init__(
        self,
        store: Store,
        policy: Policy,
        embedder: Callable[[], Embedder | None],
        *,
        marks: MarkedPairs | None = None,
        reuse_sampled: bool = False,
        drafts: bool = True,
        prefill_ms_per_token: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._similarity = Similarity(store, policy, embedder)
        self._marks = marks or MarkedPairs()
        self._drafts = drafts
        self._prefill_ms_per_token = prefill_ms_per_token  # KV is not loaded where computing it is faster
        self._reuse_sampled = reuse_sampled
        self._clock = clock

    def find(self, request: Request, access: Access, model: ModelKey, *, preview: bool = False) -> Match:
        """Walk down the ladder; the receipt carries the reason why no higher rung served.

        A preview leaves no trace: no use is counted and the policy learns of no request.
        """
        match = self.find_answer(request, access, model, preview=preview)
        if match.answer is None and not request.options.cached_only:
            self.find_prefix(request, access, model, match)
        return match

    def find_answer(self, request: Request, access: Access, model: ModelKey, *, preview: bool = False) -> Match:
        """The rungs that need no KV: an answer to replay, or donors for a draft, or why there are none."""
        started = time.perf_counter()
        match = Match(self._receipt(request, Outcome.MISS, "disabled"), identify(model.fingerprint, request))
        if self.may_read(request, access):
            self._find_answer(request, access, match, preview=preview)
        match.lookup_ms = (time.perf_counter() - started) * 1e3 - (match.embed_ms or 0.0)
        return match

    def find_prefix(
        self, request: Request, access: Access, model: ModelKey, match: Match, *, may_arrive_late: bool = False
    ) -> None:
        """Load the longest KV prefix into `match`.

        Where it `may_arrive_late` a prompt whose last logits are stored is not read yet: it is `match.arriving`.
        """
        started = time.perf_counter()
        if self.may_read(request, access):
            self._find_prefix(request, access, model, match, may_arrive_late=may_arrive_late)
            match.num_stored = self._num_stored(request, access, model, match)
        match.lookup_ms += (time.perf_counter() - started) * 1e3

    def openings(self, tokens: Sequence[int], access: Access, model: ModelKey) -> list[Donor]:
        """Readable answers of this model that begin with these tokens."""
        now_s = self._clock()
        return [
            Donor(
                found.tokens, found.has_ended, scope=scope.kind, entry_id=found.entry_id, prompt=found.prompt,
                age_s=max(0.0, now_s - found.created_at),
            )
            for scope in access.read
            for found in self.store.openings.find(scope.name, model.fingerprint, tokens)
        ]  # fmt: skip

    def may_read(self, request: Request, access: Access) -> bool:
        """Whether anything stored may be used for this request."""
        return bool(access.read) and request.options.mode.allows_prefix

    def may_replay(self, request: Request) -> bool:
        """Whether a stored answer may stand for this request at all."""
        return request.sampling.is_repeatable or self._reuse_sampled

    # Answers

    def _find_answer(self, request: Request, access: Access, match: Match, *, preview: bool) -> None:
        mode, replayable = request.options.mode, self.may_replay(request)
        may_answer = mode.allows_exact and not request.options.refresh
        if may_answer and replayable and self._find_exact(request, access, match, preview=preview):
            return
        may_serve = may_answer and replayable and mode.allows_semantic
        may_draft = self._drafts and mode.allows_draft and not request.options.cached_only
        found = self._similarity.search(
            request, access, match.identity, may_serve=may_serve, may_draft=may_draft, preview=preview
        )
        match.vector, match.embed_ms, match.verdict = found.vector, found.embed_ms, found.verdict
        if found.served is not None:
            self._serve(request, match, found.served, Outcome.SEMANTIC, found.reason, preview=preview)
            return
        reason = found.reason
        if not may_answer:
            reason = "disabled"
        elif not replayable:
            reason = "params"
        elif reason == "disabled" and not mode.allows_semantic:
            reason = "no_candidate"  # the exact key was looked up, and nothing more was asked for
        match.donors = found.donors
        match.receipt = self._receipt(request, Outcome.MISS, reason, **self._about(found.nearest))

    def _find_exact(self, request: Request, access: Access, match: Match, *, preview: bool) -> bool:
        """The identical request, or one whose answer was verified to be the same."""
        for scope in access.read:
            for entry in self.store.find_exact(scope.name, match.identity.request_key):
                if _serves(entry, request):
                    found = Neighbour(scope, entry, 1.0)
                    self._serve(request, match, found, Outcome.EXACT, "identical", preview=preview)
                    return True
        for scope in access.read:
            aliased = self.store.aliases.find(scope.name, match.identity.request_key, count=not preview)
            if aliased is not None and _serves(aliased, request) and self._is_trusted(scope, request, aliased):
                self._serve(request, match, Neighbour(scope, aliased, 1.0), Outcome.EXACT, "alias", preview=preview)
                return True
        return False

    def _is_trusted(self, scope: Scope, request: Request, aliased: Entry) -> bool:
        """Not where the two wordings were marked: whatever became of the alias then, the user's word is above it."""
        return self._marks.holds(scope.name, request.last_user_message, aliased.prompt) is False

    def _serve(
        self, request: Request, match: Match, found: Neighbour, outcome: Outcome, reason: str, *, preview: bool
    ) -> None:
        if not preview:
            self.store.touch_entry(found.entry.id)
        match.answer, match.served_from = found.entry, found.scope
        about = self._about(found)
        if outcome is Outcome.EXACT:
            about["score"] = None
        match.receipt = self._receipt(request, outcome, reason, scope=found.scope.kind, **about)

    def _about(self, found: Neighbour | None) -> dict[str, Any]:
        if found is None:
            return {}
        entry = found.entry
        return {
            "score": found.score,
            "entry_id": entry.id,
            "matched_prompt": entry.prompt,
            "entry_age_s": max(0.0, self._clock() - entry.created_at),
        }

    # KV

    def _find_prefix(
        self, request: Request, access: Access, model: ModelKey, match: Match, *, may_arrive_late: bool
    ) -> None:
        """Restore from the scope that covers most of the prompt; at least the last position's logits are needed."""
        speed = self._prefill_ms_per_token()
        worth_ms = None if speed is None else _CLEARLY * speed
        for scope in access.read:
            keys = PromptKeys.of(scope, model, request.prompt_tokens)
            if match.num_restored and not self._has_more(keys, model, match.num_restored):
                continue
            load = self.store.load_prompt(keys.blocks, keys.tail, ms_per_token=worth_ms)
            record, logits = load.record, None
            if record is not None and may_arrive_late and not load.is_at_hand:
                match.arriving = _whole(load.blocks, len(keys.blocks), record.span)
                self._restore(match, scope, [], request.num_prompt_tokens, record.logits)
                return
            spans = list(load.blocks)
            num_named = num_restored = sum(span.num_tokens for span in spans)
            if record is not None and len(spans) == len(keys.blocks):
                spans = [*spans, record.span] if record.span.num_tokens else spans
                num_named = num_restored = request.num_prompt_tokens
                logits = record.logits
            else:
                if model.cuts.are_anywhere and (more := self._load_more(keys, len(spans), worth_ms)) is not None:
                    spans, num_restored = [*spans, more], num_restored + more.num_tokens
                num_restored = model.cuts.start(num_restored, request.num_prompt_tokens)
                spans = leading(spans, num_restored)
            if num_restored > match.num_restored:
                self._restore(match, scope, spans, num_restored, logits)
                # What another prompt's block brought is stored in none of this one's own, which may be whole ones where
                # blocks were larger at that time.
                match.num_stored = min(num_named, num_restored)

    def _restore(
        self, match: Match, scope: Scope, spans: list[KVSpan], num_restored: int, logits: object | None
    ) -> None:
        match.spans, match.num_restored, match.prompt_logits = spans, num_restored, logits
        match.num_stored = num_restored
        match.receipt = replace(match.receipt, outcome=Outcome.PREFIX, scope=scope.kind, prefix_tokens=num_restored)

    def _num_stored(self, request: Request, access: Access, model: ModelKey, match: Match) -> int:
        """What was found by the prompt's own names, or nothing where another scope that is written lacks any of it."""
        for scope in access.write:
            if match.num_stored and scope.kind != match.receipt.scope:
                keys = PromptKeys.of(scope, model, request.prompt_tokens)
                record = [keys.tail] if match.num_stored == keys.num_tokens else []
                if self.store.missing([*keys.blocks[: match.num_stored // model.block_tokens], *record]):
                    return 0
        return match.num_stored

    def _has_more(self, keys: PromptKeys, model: ModelKey, num_restored: int) -> bool:
        """Whether a scope covers more than another one did; looks at rows and reads one block at most."""
        num_wanted = num_restored + model.cuts.every
        if num_wanted >= keys.num_tokens:  # a token is left to compute, unless the last position's logits are there
            num_covered = len(keys.blocks) * model.block_tokens
            is_more = num_restored < model.cuts.start(num_covered, keys.num_tokens)
            return num_restored < keys.num_tokens and not self.store.missing(
                keys.blocks if is_more else [*keys.blocks, keys.tail]
            )
        num_blocks = -(-num_wanted // model.block_tokens)
        if num_blocks <= len(keys.blocks) and not self.store.missing(keys.blocks[:num_blocks]):
            return True
        num_whole = num_restored // model.block_tokens
        if not model.cuts.are_anywhere or self.store.missing(keys.blocks[:num_whole]):
            return False
        more = self.store.load_continuation(keys.behind(num_whole))
        return more is not None and num_whole * model.block_tokens + more.num_tokens > num_restored

    def _load_more(self, keys: PromptKeys, num_blocks: int, worth_ms: float | None) -> KVSpan | None:
        """KV of what the prompt shares with another one behind its leading blocks."""
        refused = keys.blocks[num_blocks : num_blocks + 1]
        if refused and not self.store.missing(refused):
            return None  # the next block is there and not worth loading: nothing that shares less is
        return self.store.load_continuation(keys.behind(num_blocks), ms_per_token=worth_ms)

    def _receipt(self, request: Request, outcome: Outcome, reason: str, **found: Any) -> Receipt:
        return Receipt(outcome=outcome, reason=reason, strategy=request.options.strategy, **found)


def _serves(entry: Entry, request: Request) -> bool:
    return fits(request.sampling, entry.finish_reason, entry.num_completion_tokens)


def _whole(blocks: Generator[KVSpan, None, None], num_blocks: int, rest: KVSpan) -> Generator[KVSpan, None, None]:
    """The blocks of a prompt, and what is left behind the last one where none is missing."""
    num_read = 0
    with closing(blocks):
        for span in blocks:
            num_read += 1
            yield span
    if num_read == num_blocks and rest.num_tokens:
        yield rest
