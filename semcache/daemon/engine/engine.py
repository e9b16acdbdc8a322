"""The engine's front door: tokens in, tokens out. Knows no users, no HTTP and takes no cache decisions.

One thread calls it. The caller owns the order of calls: begin, prefill until a token comes, decode or verify, release.
Before a decode or verify step the KV of every token but the newest is computed; the newest is the step's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from semcache.config import Exactness
from semcache.daemon.cuts import Cuts
from semcache.daemon.engine.decode import DecodeRow, decode_rows
from semcache.daemon.engine.draft import Proposal, usable
from semcache.daemon.engine.fingerprint import numerics
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.prefill import next_stop, prefill_chunk
from semcache.daemon.engine.sampler import NAN_LOGITS, SampleKey, sample
from semcache.daemon.engine.trial import try_out
from semcache.daemon.engine.verify import TIE_MARGINS, Verified, judge, regrets
from semcache.daemon.request import Request, RequestState
from semcache.errors import EngineError
from semcache.store.tensors import KVSpan, leading

_TOUCHED_BYTES = 64 << 20  # of slot memory at load: about one long prompt of a small model


class Engine:
    """A loaded model with its slots; CUDA is a setting whose code is plain and has not run on a card yet."""

    def __init__(
        self, loaded: LoadedModel, *, num_slots: int, prefill_chunk_tokens: int, tie_margin: float = 0.0,
        exactness: Exactness = "bitwise",
    ) -> None:  # fmt: skip
        self.info = loaded.info
        self.tokenizer = loaded.tokenizer
        self.num_slots = num_slots
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.tie_margin = tie_margin or TIE_MARGINS[loaded.info.dtype]
        self._forward = loaded.forward
        self._pool = SlotPool(loaded.info, num_slots)
        self._pool.touch(_TOUCHED_BYTES)
        self._to_restore: dict[int, Sequence[KVSpan]] = {}  # by slot, until the KV is needed
        trial = try_out(loaded.forward, self._pool, prefill_chunk_tokens)
        self.widths = trial.widths  # how many chunks one pass may take, largest first, beside one
        self.cuts = Cuts(prefill_chunk_tokens, trial.last_rows) if exactness == "bitwise" else Cuts(1, 1)
        code = f"{loaded.info.products};{loaded.info.forward}"
        self.numerics = numerics(
            loaded.info.device, loaded.info.dtype, prefill_chunk_tokens, code, trial.digest, exactness
        )

    @property
    def reuses_answers(self) -> bool:
        """Whether KV of decode steps may be reused: a prefill of the same tokens rounds differently."""
        return self.cuts.are_anywhere

    @property
    def num_free_slots(self) -> int:
        return self._pool.num_free

    def begin(self, request: Request) -> None:
        """Take a slot for the request, copy what was restored into it, and cut off what no donor can offer.

        Where the first token needs no forward the copy waits until that token is out.
        """
        self._check(request)
        request.donor = usable(request.donor, self.info.vocab_size, self.info.eos_token_ids)
        request.slot = self._pool.acquire()
        request.num_computed = request.num_restored
        # What arrives later is copied as it comes.
        self._to_restore[request.slot], request.restored = request.restored, []
        if request.num_restored == request.num_prompt_tokens:
            if request.prompt_logits is not None:
                return
            request.num_computed = self.cuts.start(request.num_prompt_tokens, request.num_prompt_tokens)
        try:
            self._restore(request)
        except EngineError:
            self.release(request)
            raise

    def receive(self, request: Request, span: KVSpan) -> bool:
        """Take the next part of what is to be restored, into its slot where it has one; whether this was the last."""
        start = request.num_arrived
        if start + span.num_tokens > request.num_prompt_tokens:
            raise EngineError(f"more than the {request.num_prompt_tokens} tokens of the prompt were restored")
        self._pool.check(span)
        request.num_arrived += span.num_tokens
        if request.slot is None:
            request.restored.append(span)
        else:
            self._copy(request, [span], start)
        return request.num_arrived == request.num_prompt_tokens

    def settle(self, request: Request) -> bool:
        """Nothing more arrives. False where that is not the whole prompt: what is behind the last cut is computed."""
        request.is_arriving = False
        if request.num_arrived == request.num_prompt_tokens:
            return True
        request.lose_restored(self.cuts.last(request.num_arrived))
        if request.slot is None:
            request.restored = leading(request.restored, request.num_restored)
        else:
            self._restore(request)
            request.num_computed = request.num_restored
        return False

    def prefill(self, request: Request, *, wide: bool = False) -> int | None:
        """Run one chunk, or several where `wide`; the first token of the answer when the prompt is complete, else None.

        How many are run at once changes no bit. A prompt whose KV and logits were both restored needs no forward.
        """
        start, num_prompt_tokens = request.num_computed, request.num_prompt_tokens
        if start < num_prompt_tokens:
            stop = next_stop(start, num_prompt_tokens, self.prefill_chunk_tokens, self.cuts)
            if wide and stop - start == self.prefill_chunk_tokens:
                num_chunks = (num_prompt_tokens - start) // self.prefill_chunk_tokens
                stop = start + self.prefill_chunk_tokens * next((w for w in self.widths if w <= num_chunks), 1)
            with torch.inference_mode():
                logits = prefill_chunk(
                    self._forward,
                    self._pool,
                    self._slot(request),
                    request.prompt_tokens[start:stop],
                    start,
                    num_logits=int(stop == num_prompt_tokens),
                    chunk_tokens=self.prefill_chunk_tokens,
                )
            request.num_computed = stop
            request.num_passes += 1
            if logits is None:
                if self._is_cuda:
                    torch.cuda.synchronize(self.info.device)  # a clock around this call is to see more than a queue
                return None
            # Copied outside inference mode: what leaves the engine is an ordinary tensor.
            request.prompt_logits = logits[0].to("cpu", torch.float32, copy=True)
        assert isinstance(request.prompt_logits, Tensor), request.id
        [token] = sample(request.prompt_logits[None], [_sample_key(request, request.num_computed)])
        if token is None:
            raise EngineError(NAN_LOGITS)
        if request.donor is not None:
            # The prompt's own logits judge the donor's first token, without a pass.
            request.donor_regret = regrets(request.prompt_logits[None], request.donor.tokens[:1])[0]
            request.num_drafted = 1
            request.num_draft_accepted = int(token == request.donor.tokens[0])
        return token

    def decode(self, requests: Sequence[Request]) -> list[int | None]:
        """The next token of each request, from one forward; the newest output token of each is the input.

        None for a request whose logits are NaN or infinite.
        """
        rows = [DecodeRow(self._slot(request), request.num_computed, _newest(request)) for request in requests]
        for request in requests:
            self._restore(request)
            if request.num_computed >= self.info.context_tokens:
                raise EngineError(f"request {request.id} has filled the context of {self.info.context_tokens} tokens")
        with torch.inference_mode():
            logits = decode_rows(self._forward, self._pool, rows)  # [rows, vocab]
            for request in requests:
                request.num_computed += 1
                request.num_passes += 1
            return sample(logits, [_sample_key(request, request.num_computed) for request in requests])

    def room(self, request: Request) -> int:
        """How many tokens one verification may bring: to the end of the answer or the context, at most a chunk."""
        num_output = len(request.output_tokens)
        left = self.info.context_tokens - request.num_prompt_tokens - num_output
        return min(left, request.sampling.max_tokens - num_output, self.prefill_chunk_tokens)

    def verify(self, request: Request, proposal: Proposal) -> Verified:
        """Judge proposed tokens in one forward of this row alone; KV behind what is accepted is overwritten later.

        Counts what was drafted; what was accepted counts once it is part of the answer.
        """
        drafted, start = proposal.tokens, request.num_computed
        # The last token that fits needs no row of its own: it is judged by the row before.
        num_rows = min(len(drafted) + 1, self.room(request))
        inputs = [_newest(request), *drafted][:num_rows]
        self._restore(request)
        with torch.inference_mode():
            logits = prefill_chunk(self._forward, self._pool, self._slot(request), inputs, start, num_logits=num_rows)
            assert logits is not None
            keys = [_sample_key(request, start + 1 + row) for row in range(num_rows)]
            verified = judge(logits, drafted, keys, self.tie_margin)
            if len(verified.tokens) < num_rows and not logits.amax(dim=-1).isfinite().all():
                # What was rejected is no number, and would spoil other rows whose padding it is (SlotPool.clear).
                self._pool.clear(self._slot(request), start + len(verified.tokens), start + num_rows)
            if proposal.source == "donor":
                self._learn(request, proposal, logits)
        request.num_passes += 1
        request.num_computed += len(verified.tokens)
        return verified

    def _learn(self, request: Request, proposal: Proposal, logits: Tensor) -> None:
        """Count the donor's tokens, and take its regret from the pass that judges it from the start."""
        donor, first = request.donor, request.donor_regret
        is_first_pass = request.num_drafted == request.num_draft_accepted == 1
        request.num_drafted += len(proposal.tokens)
        # Another donor's answer, or a later piece of this one, says nothing about the whole of this one.
        if donor is None or first is None or not is_first_pass or proposal.start != 1:
            return
        if proposal.tokens != donor.tokens[1 : 1 + len(proposal.tokens)]:
            return
        gaps = [first, *regrets(logits, proposal.tokens)]
        if donor.has_ended and len(logits) == len(donor.tokens) and self.info.eos_token_ids:
            ends = logits[-1, list(self.info.eos_token_ids)]
            gaps.append(float(logits[-1].max() - ends.max()))
        regret = sum(gaps) / len(gaps)
        request.donor_regret = regret if isfinite(regret) else None  # nothing is known of a row that is no number

    def num_reusable(self, request: Request) -> int:
        """How many leading tokens have KV that may be reused; a decoded one's only where its rounding may differ."""
        if not self.reuses_answers:
            return request.num_prompt_tokens
        # Without the newest token where no step has taken it yet; a verification that went on behind the answer's end
        # has counted more.
        return min(request.num_computed, request.num_prompt_tokens + len(request.output_tokens))

    def kv(self, request: Request, start: int, stop: int) -> KVSpan:
        """Host copy of the KV of tokens [start, stop) of prompt and answer."""
        assert start <= stop <= request.num_computed, (request.id, start, stop)
        self._restore(request)
        return self._pool.snapshot(self._slot(request), start, stop)

    def release(self, request: Request) -> None:
        """Give the request's slot back; harmless when it has none."""
        if request.slot is None:
            return
        slot, request.slot = request.slot, None
        self._to_restore.pop(slot, None)
        try:
            if request.state is not RequestState.FINISHED:
                # A draft or a pass that did not end may have written behind the newest.
                num_chunks = max(self.widths, default=1)
                stop = request.num_computed + num_chunks * self.prefill_chunk_tokens
                self._pool.clear(slot, _num_finite(request), stop)
        finally:
            self._pool.release(slot)

    def close(self) -> None:
        """Free the weights and the slots; the engine cannot be used afterwards."""
        del self._forward, self._pool
        if self._is_cuda:
            torch.cuda.empty_cache()

    @property
    def _is_cuda(self) -> bool:
        return torch.device(self.info.device).type == "cuda"

    def _restore(self, request: Request) -> None:
        """Copy what waits for the request's slot into it; nothing the second time."""
        self._copy(request, self._to_restore.pop(self._slot(request), ()), 0)

    def _copy(self, request: Request, spans: Sequence[KVSpan], start: int) -> None:
        try:
            self._pool.restore(self._slot(request), spans, start)
        except RuntimeError as error:
            raise EngineError(f"restoring {request.num_restored} tokens failed: {error}") from error

    def _check(self, request: Request) -> None:
        num_tokens, context_tokens = request.num_prompt_tokens, self.info.context_tokens
        if not 0 < num_tokens <= context_tokens:
            raise EngineError(f"the prompt has {num_tokens} tokens; 1 to {context_tokens} can be served")
        if not 0 <= min(request.prompt_tokens) <= max(request.prompt_tokens) < self.info.vocab_size:
            raise EngineError(f"the prompt has a token id outside the model's vocabulary of {self.info.vocab_size}")
        num_restored = sum(span.num_tokens for span in request.restored)
        num_announced = num_restored if request.is_arriving else request.num_restored
        if num_restored != num_announced or num_restored > num_tokens:
            raise EngineError(f"{num_restored} tokens were restored, {request.num_restored} of {num_tokens} announced")
        for span in request.restored:
            self._pool.check(span)
        logits = request.prompt_logits
        if logits is not None and not _fits(logits, self.info.vocab_size):
            raise EngineError(f"restored logits are not {self.info.vocab_size} float32 numbers")

    def _slot(self, request: Request) -> int:
        assert request.slot is not None, f"request {request.id} has no slot; begin() comes first"
        return request.slot


def _fits(logits: object, vocab_size: int) -> bool:
    return isinstance(logits, Tensor) and logits.dtype == torch.float32 and logits.shape == (vocab_size,)


def _num_finite(request: Request) -> int:
    """Leading tokens whose KV is numbers for sure. Running streams wait while the rest of a long prompt is cleared."""
    if request.state is not RequestState.CANCELLED:
        return 0  # it may have failed because of numbers that are none
    if request.prompt_logits is not None:
        return request.num_computed  # the logits of every pass were looked at
    return min(request.num_restored, request.num_computed)  # what is stored, logits have followed from


def _newest(request: Request) -> int:
    expected = request.num_prompt_tokens + len(request.output_tokens) - 1
    assert request.num_computed == expected, (request.id, request.num_computed, expected)
    return request.output_tokens[-1]


def _sample_key(request: Request, position: int) -> SampleKey:
    seed = request.sampling.seed
    return SampleKey(request.sampling, request.noise_seed if seed is None else seed, position)
