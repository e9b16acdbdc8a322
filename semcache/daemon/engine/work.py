"""What requests ask of a pass, and what its logits mean: a prompt's chunk, a draft to judge, the next tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from semcache.daemon.engine.decode import DecodeRow, decode_pass
from semcache.daemon.engine.draft import Proposal
from semcache.daemon.engine.forward import Pass
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.prefill import prefill_pass
from semcache.daemon.engine.sampler import SampleKey, sample
from semcache.daemon.engine.verify import Verified, judge, regrets
from semcache.daemon.request import Request


class Work(Protocol):
    """One pass is planned for it; its logits are taken once, before anything else is planned for its requests."""

    @property
    def num_rows(self) -> int:
        """Tokens of the pass."""

    def plan(self, pool: SlotPool) -> Pass: ...

    def take(self, pool: SlotPool, logits: Tensor | None) -> None: ...


@dataclass(frozen=True)
class PromptWork:
    """The next tokens of a prompt, one chunk or several; the logits behind its last one are kept in the request."""

    request: Request
    stop: int
    chunk_tokens: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.request.num_computed

    def plan(self, pool: SlotPool) -> Pass:
        request, start = self.request, self.request.num_computed
        num_logits = int(self.stop == request.num_prompt_tokens)
        tokens = request.prompt_tokens[start : self.stop]
        return prefill_pass(
            pool, slot_of(request), tokens, start, num_logits=num_logits, chunk_tokens=self.chunk_tokens
        )

    def take(self, pool: SlotPool, logits: Tensor | None) -> None:
        self.request.num_computed = self.stop
        self.request.num_passes += 1
        if logits is not None:
            self.request.prompt_logits = logits[0, 0].to("cpu", torch.float32, copy=True)


@dataclass
class DraftWork:
    """Drafted tokens behind the newest one. Counts what was drafted; what is accepted counts once it is answered.

    KV behind what is accepted is overwritten later.
    """

    request: Request
    proposal: Proposal
    num_rows: int
    tie_margin: float
    eos_token_ids: Collection[int]
    verified: Verified | None = None

    def plan(self, pool: SlotPool) -> Pass:
        request = self.request
        inputs = [newest(request), *self.proposal.tokens][: self.num_rows]
        return prefill_pass(pool, slot_of(request), inputs, request.num_computed, num_logits=self.num_rows)

    def take(self, pool: SlotPool, logits: Tensor | None) -> None:
        assert logits is not None
        request, start, rows = self.request, self.request.num_computed, logits[0]  # [num_rows, vocab]
        keys = [sample_key(request, start + 1 + row) for row in range(self.num_rows)]
        self.verified = judge(rows, self.proposal.tokens, keys, self.tie_margin)
        num_kept = len(self.verified.tokens)
        if num_kept < self.num_rows and not rows.amax(dim=-1).isfinite().all():
            # What was rejected is no number, and would spoil other rows whose padding it is (SlotPool.clear).
            pool.clear(slot_of(request), start + num_kept, start + self.num_rows)
        if self.proposal.source == "donor":
            self._learn(rows)
        request.num_passes += 1
        request.num_computed += num_kept

    def _learn(self, logits: Tensor) -> None:
        """Count the donor's tokens, and take its regret from the pass that judges it from the start."""
        request, proposal = self.request, self.proposal
        donor, first = request.donor, request.donor_regret
        is_first_pass = request.num_drafted == request.num_draft_accepted == 1
        request.num_drafted += len(proposal.tokens)
        # Another donor's answer, or a later piece of this one, says nothing about the whole of this one.
        if donor is None or first is None or not is_first_pass or proposal.start != 1:
            return
        if proposal.tokens != donor.tokens[1 : 1 + len(proposal.tokens)]:
            return
        gaps = [first, *regrets(logits, proposal.tokens)]
        if donor.has_ended and len(logits) == len(donor.tokens) and self.eos_token_ids:
            ends = logits[-1, list(self.eos_token_ids)]
            gaps.append(float(logits[-1].max() - ends.max()))
        regret = sum(gaps) / len(gaps)
        request.donor_regret = regret if isfinite(regret) else None  # nothing is known of a row that is no number


@dataclass
class DecodeWork:
    """One token for each; the newest output token of each is the input."""

    requests: Sequence[Request]
    tokens: list[int | None] = field(default_factory=list)  # in the same order; None: NaN or infinite logits

    @property
    def num_rows(self) -> int:
        return len(self.requests)

    def plan(self, pool: SlotPool) -> Pass:
        rows = [DecodeRow(slot_of(request), request.num_computed, newest(request)) for request in self._by_slot]
        return decode_pass(pool, rows)

    def take(self, pool: SlotPool, logits: Tensor | None) -> None:
        assert logits is not None
        for request in self.requests:
            request.num_computed += 1
            request.num_passes += 1
        keys = [sample_key(request, request.num_computed) for request in self._by_slot]
        sampled = zip((request.id for request in self._by_slot), sample(logits[:, -1], keys), strict=True)
        of_request = dict(sampled)
        self.tokens = [of_request[request.id] for request in self.requests]

    @property
    def _by_slot(self) -> list[Request]:
        return sorted(self.requests, key=slot_of)


def slot_of(request: Request) -> int:
    assert request.slot is not None, f"request {request.id} has no slot; begin() comes first"
    return request.slot


def newest(request: Request) -> int:
    """The last output token, whose KV is not computed yet; that of all before it is."""
    expected = request.num_prompt_tokens + len(request.output_tokens) - 1
    assert request.num_computed == expected, (request.id, request.num_computed, expected)
    return request.output_tokens[-1]


def sample_key(request: Request, position: int) -> SampleKey:
    seed = request.sampling.seed
    return SampleKey(request.sampling, request.noise_seed if seed is None else seed, position)
