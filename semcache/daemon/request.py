"""One request, from HTTP to receipt: what was asked, what was reused, what came out.

Pure Python: the scheduler, the cache's decisions and their tests need no torch. Derived numbers are properties.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from semcache.errors import SemcacheError

if TYPE_CHECKING:
    from semcache.daemon.cache.policy import Considered
    from semcache.store.tensors import KVSpan


class Outcome(StrEnum):
    """The highest rung of the reuse ladder that served a request."""

    EXACT = "exact"
    SEMANTIC = "semantic"
    DRAFT = "draft"
    PREFIX = "prefix"
    MISS = "miss"

    @property
    def is_answer_hit(self) -> bool:
        return self in (Outcome.EXACT, Outcome.SEMANTIC)


class RequestState(StrEnum):
    QUEUED = "queued"
    MATCHING = "matching"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in (RequestState.FINISHED, RequestState.FAILED, RequestState.CANCELLED)


class CacheMode(StrEnum):
    """How much of the ladder a request allows; `off` neither reads nor writes."""

    AUTO = "auto"
    LOSSLESS = "lossless"
    EXACT = "exact"
    PREFIX = "prefix"
    OFF = "off"

    @property
    def allows_exact(self) -> bool:
        return self in (CacheMode.AUTO, CacheMode.LOSSLESS, CacheMode.EXACT)

    @property
    def allows_semantic(self) -> bool:
        return self is CacheMode.AUTO

    @property
    def allows_draft(self) -> bool:
        return self in (CacheMode.AUTO, CacheMode.LOSSLESS)

    @property
    def allows_prefix(self) -> bool:
        return self is not CacheMode.OFF


@dataclass(frozen=True)
class Sampling:
    """Parameters that decide the next token. `temperature == 0` is greedy and makes the rest irrelevant."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def is_repeatable(self) -> bool:
        """Whether asking again gives the same answer, so that replaying it changes nothing."""
        return self.is_greedy or self.seed is not None


@dataclass(frozen=True)
class CacheOptions:
    """What the caller asked of the cache."""

    strategy: str = "per_user"
    mode: CacheMode = CacheMode.AUTO
    refresh: bool = False  # skip answers, but store the new one
    no_store: bool = False
    cached_only: bool = False
    namespace: str = ""  # isolates a replay run; part of every scope


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Receipt:
    """What was reused for one request, and why not more. Unknown is None, never 0."""

    outcome: Outcome
    reason: str
    strategy: str
    scope: str | None = None  # "user" or "global": where the reused thing was found
    score: float | None = None
    entry_id: str | None = None
    matched_prompt: str | None = None
    entry_age_s: float | None = None
    prefix_tokens: int = 0  # prompt tokens whose KV was restored
    draft_tokens: int = 0
    draft_accepted: int = 0
    stored: bool = False


@dataclass(frozen=True)
class Donor:
    """A stored answer that is offered to the model as a draft of its own; the model decides, token by token."""

    tokens: tuple[int, ...]
    has_ended: bool  # the model stopped there by itself, so the end is part of the draft
    # For the receipt, where it is not the one that the look-up named.
    scope: str | None = None  # "user" or "global"
    entry_id: str | None = None
    prompt: str | None = None
    score: float | None = None  # cosine; None where it was found by how it begins
    age_s: float | None = None


@dataclass(frozen=True)
class Token:
    """Text that became final, in order; may be empty while a character or a stop string is still open."""

    text: str


@dataclass(frozen=True)
class Matched:
    """The look-up is done; what is known before the first byte of the answer."""

    receipt: Receipt


@dataclass(frozen=True)
class End:
    """The last event of every request."""

    state: RequestState
    error: SemcacheError | None


Event = Token | Matched | End


@dataclass
class Timestamps:
    """Seconds on the monotonic clock; None where the request never came there."""

    submitted: float
    matched: float | None = None
    prefill_started: float | None = None
    restored: float | None = None
    first_token: float | None = None
    second_token: float | None = None
    ended: float | None = None
    embed_ms: float | None = None
    lookup_ms: float | None = None


@dataclass(eq=False)  # two requests are the same only when they are one object
class Request:
    """The one mutable object that makes the whole trip.

    Owned by the event loop until it is handed to the engine thread, by the engine thread from then on; `end` is
    called exactly once, by whoever owns it.
    """

    id: str
    user: str
    model: str
    messages: tuple[Message, ...]
    prompt_tokens: Sequence[int]
    sampling: Sampling
    options: CacheOptions
    publish: Callable[[Event], None]
    template_options: tuple[tuple[str, str], ...] = ()
    clock: Callable[[], float] = time.monotonic
    created_at: float = field(default_factory=time.time)  # wall clock, for people
    explains: bool = False  # the receipt tells every candidate
    gives_way: bool = False  # idle work: ended within a chunk when somebody asks

    state: RequestState = RequestState.QUEUED
    receipt: Receipt | None = None
    output_tokens: list[int] = field(default_factory=list)
    answer: str = ""
    finish_reason: str | None = None
    error: SemcacheError | None = None

    # Set by the look-up: host tensors that together cover prompt tokens [0, num_restored). The engine lets go of them
    # once they lie in its slot.
    restored: list[KVSpan] = field(default_factory=list)
    num_restored: int = 0
    # Leading prompt tokens whose KV every scope that is written has, as this prompt's own; at most those restored.
    num_stored: int = 0
    # Logits of the last prompt position, restored from a full-prompt record or computed by prefill; [vocab], float32.
    prompt_logits: object | None = None
    # More of `restored` is still being read: until then it covers less. The first token needs none of it.
    is_arriving: bool = False

    considered: tuple[Considered, ...] = ()  # candidates and what the policy made of them
    # Set by the look-up, verified by the engine.
    donor: Donor | None = None
    more_donors: tuple[Donor, ...] = ()  # nearest first
    # Called once on the engine thread with the answer's first tokens, where no donor has said them; must not block.
    # What it finds comes back through `EngineLoop.offer`.
    seek_donors: Callable[[Sequence[int]], None] | None = None
    # Called once on the engine thread when the request has its slot, so that `restored` waits for none; must not block.
    on_slot: Callable[[], object] = lambda: None
    # Called once on the engine thread when nothing `is_arriving` any more and all that did was taken; must not block.
    on_arrived: Callable[[], object] = lambda: None
    accepted_donor: Donor | None = None  # whose tokens became part of the answer last
    num_drafted: int = 0  # donor tokens that were put before the model
    num_draft_accepted: int = 0
    # Mean over the donor's tokens, the whole answer given, of how far each lies below the likeliest one, in nats; only
    # the first one where that was already another. 0: the model says the same, word for word.
    donor_regret: float | None = None
    num_passes: int = 0  # forward passes that this request took part in

    # Engine state.
    slot: int | None = None
    num_computed: int = 0  # tokens whose KV lies in the slot
    num_arrived: int = 0  # tokens whose KV came while it `is_arriving`
    noise_seed: int = 0
    cancel_requested: bool = False
    cancel_error: SemcacheError | None = None  # why, where it is not simply the client's wish

    times: Timestamps = field(default_factory=lambda: Timestamps(submitted=0.0))

    def __post_init__(self) -> None:
        self.times.submitted = self.clock()

    @property
    def last_user_message(self) -> str:
        return self.messages[-1].content

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_tokens)

    @property
    def is_prompt_computed(self) -> bool:
        """Whether the KV of all of it lies in the slot, or waits to be copied there."""
        return self.num_computed >= self.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were not computed."""
        if self.receipt is not None and self.receipt.outcome.is_answer_hit:
            return self.num_prompt_tokens
        return self.receipt.prefix_tokens if self.receipt is not None else 0

    def match(self, receipt: Receipt) -> None:
        """Record the look-up's result and tell the client, once, before any token."""
        self.receipt = receipt
        self.times.matched = self.clock()
        self.publish(Matched(receipt))

    def emit(self, token_ids: Sequence[int], text: str) -> None:
        """Append computed or replayed tokens and the text that they made final."""
        had = len(self.output_tokens)
        self.output_tokens.extend(token_ids)
        self.answer += text
        now = self.clock()
        if had == 0:
            self.times.first_token = self.times.first_token or now
        if had < 2 <= len(self.output_tokens):
            self.times.second_token = now
        self.publish(Token(text))

    def lose_restored(self, num_restored: int) -> None:
        """Of what was to be restored only so much could be read; the receipt says what is really reused."""
        self.num_restored, self.prompt_logits = num_restored, None
        self.num_stored = min(self.num_stored, num_restored)
        if self.receipt is None:
            return
        self.receipt = replace(self.receipt, prefix_tokens=num_restored)
        if not num_restored:
            self.receipt = replace(self.receipt, outcome=Outcome.MISS, reason="unreadable", scope=None)

    def settle_draft(self) -> None:
        """Put the draft's counts into the receipt; from half of the completion on, the outcome is `draft`."""
        if self.receipt is None or not self.num_drafted:
            return
        is_draft = 0 < len(self.output_tokens) <= 2 * self.num_draft_accepted
        self.receipt = replace(
            self.receipt, draft_tokens=self.num_drafted, draft_accepted=self.num_draft_accepted,
            outcome=Outcome.DRAFT if is_draft else self.receipt.outcome,
        )  # fmt: skip
        donor = self.accepted_donor or self.donor  # where only the first token was accepted, it was the first donor's
        if is_draft and donor is not None and donor.entry_id is not None:
            self.receipt = replace(
                self.receipt, scope=donor.scope, entry_id=donor.entry_id, matched_prompt=donor.prompt,
                score=donor.score, entry_age_s=donor.age_s,
            )  # fmt: skip

    def end(self, state: RequestState, error: SemcacheError | None = None) -> None:
        """The only way out of a request; publishes exactly once."""
        assert state.is_terminal, (self.id, state)
        assert not self.state.is_terminal, (self.id, self.state, state)
        self.state, self.error = state, error and error.bare()  # the request is remembered for long
        self.times.ended = self.clock()
        self.publish(End(state, self.error))
