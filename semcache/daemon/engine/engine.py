"""The engine's front door: tokens in, tokens out. Knows no users, no HTTP and takes no cache decisions.

One thread calls it. The caller owns the order of calls: begin, prefill until a token comes, decode or verify, release;
`together` is one pass of all three kinds, with `first_token` behind it for each prompt. Before a decode or verify step
the KV of every token but the newest is computed; the newest is the step's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semcache.config import Exactness
from semcache.daemon.cuts import Cuts
from semcache.daemon.engine.draft import Proposal, usable
from semcache.daemon.engine.fingerprint import numerics
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.llama import LlamaForward
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.prefill import next_stop
from semcache.daemon.engine.rows import Rows
from semcache.daemon.engine.sampler import NAN_LOGITS, sample
from semcache.daemon.engine.trial import try_out
from semcache.daemon.engine.verify import TIE_MARGINS, Verified, regrets
from semcache.daemon.engine.work import DecodeWork, DraftWork, PromptWork, Work, sample_key, slot_of
from semcache.daemon.request import Request, RequestState
from semcache.errors import EngineError
from semcache.store.tensors import KVSpan, leading

MAX_CHUNKS = 4  # in one pass; eight bring little more, and whoever comes meanwhile waits for all of them
_TOUCHED_BYTES = 64 << 20  # of slot memory at load: about one long prompt of a small model


@dataclass(frozen=True)
class Together:
    """What one pass over several requests came to, in the order in which they were given."""

    verified: list[Verified]
    tokens: list[int | None]
    num_rows: int


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
        self._rows = Rows(loaded.forward, prefill_chunk_tokens)
        self.joins = all(map(self._rows.are_alike, (prefill_chunk_tokens, 2 * prefill_chunk_tokens)))
        self.max_chunks = MAX_CHUNKS if self.joins else 1  # of a prompt in one pass, at most
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

    def prefill(self, request: Request, *, max_chunks: int = 1) -> int | None:
        """Compute the next chunk of a prompt, or several at once; then what `first_token` says.

        How many are computed at once changes no bit. A prompt whose KV and logits were both restored needs no pass.
        """
        if not request.is_prompt_computed:
            self._compute([self._chunk(request, max_chunks)])
        return self.first_token(request)

    def first_token(self, request: Request) -> int | None:
        """The first token of the answer once the prompt is complete, else None. Raises where its logits are no numbers.

        Judges the donor's first token as well.
        """
        if not request.is_prompt_computed:
            return None
        assert isinstance(request.prompt_logits, Tensor), request.id
        [token] = sample(request.prompt_logits[None], [sample_key(request, request.num_prompt_tokens)])
        if token is None:
            raise EngineError(NAN_LOGITS)
        if request.donor is not None:
            # The prompt's own logits judge the donor's first token, without a pass.
            request.donor_regret = regrets(request.prompt_logits[None], request.donor.tokens[:1])[0]
            request.num_drafted = 1
            request.num_draft_accepted = int(token == request.donor.tokens[0])
        return token

    def decode(self, requests: Sequence[Request]) -> list[int | None]:
        """The next token of each request; the newest output token of each is the input.

        None for a request whose logits are NaN or infinite.
        """
        work = self._next_tokens(requests)
        self._compute([work])
        return work.tokens

    def room(self, request: Request) -> int:
        """How many tokens one verification may bring: to the end of the answer or the context, at most a chunk."""
        num_output = len(request.output_tokens)
        left = self.info.context_tokens - request.num_prompt_tokens - num_output
        return min(left, request.sampling.max_tokens - num_output, self.prefill_chunk_tokens)

    def num_rows(self, request: Request, proposal: Proposal) -> int:
        """Of its verification: the last token that fits is judged by the row before it."""
        return min(len(proposal.tokens) + 1, self.room(request))

    def verify(self, request: Request, proposal: Proposal) -> Verified:
        """Judge proposed tokens in a pass of this row alone."""
        work = self._check_of(request, proposal)
        self._compute([work])
        assert work.verified is not None
        return work.verified

    def together(
        self, prefills: Sequence[Request], drafted: Sequence[tuple[Request, Proposal]], decodes: Sequence[Request]
    ) -> Together | None:
        """`prefill` of some, `verify` of others, `decode` of more in one pass; `first_token` is left to be asked for.

        None where a prompt's bits are only known to be right in a pass of its own.
        """
        if not self.joins:
            return None
        chunks = [self._chunk(request, 1) for request in prefills]
        checks = [self._check_of(request, proposal) for request, proposal in drafted]
        step = self._next_tokens(decodes)
        work: list[Work] = [*chunks, *checks, *([step] if decodes else [])]
        num_rows = sum(one.num_rows for one in work)
        sizes = {num_rows, *(chunk.num_rows for chunk in chunks)} if chunks else ()
        if not all(map(self._rows.are_alike, sizes)):
            return None
        self._compute(work)
        verified = [check.verified for check in checks if check.verified is not None]
        return Together(verified, step.tokens, num_rows)

    def _chunk(self, request: Request, max_chunks: int) -> PromptWork:
        start, size = request.num_computed, self.prefill_chunk_tokens
        stop = next_stop(start, request.num_prompt_tokens, size, self.cuts)
        if stop - start == size:
            widest = min(max_chunks, self.max_chunks, (request.num_prompt_tokens - start) // size)
            stop = start + size * next(width for width in range(widest, 0, -1) if self._may_be_wide(width))
        return PromptWork(request, stop, size)

    def _may_be_wide(self, num_chunks: int) -> bool:
        return num_chunks == 1 or self._rows.are_alike(num_chunks * self.prefill_chunk_tokens)

    def _check_of(self, request: Request, proposal: Proposal) -> DraftWork:
        self._restore(request)
        num_rows = self.num_rows(request, proposal)
        return DraftWork(request, proposal, num_rows, self.tie_margin, self.info.eos_token_ids)

    def _next_tokens(self, requests: Sequence[Request]) -> DecodeWork:
        for request in requests:
            self._restore(request)
            if request.num_computed >= self.info.context_tokens:
                raise EngineError(f"request {request.id} has filled the context of {self.info.context_tokens} tokens")
        return DecodeWork(requests)

    def _compute(self, work: Sequence[Work]) -> None:
        """One pass."""
        with torch.inference_mode():
            passes = [one.plan(self._pool) for one in work]
            if len(passes) == 1:
                logits = [self._forward(*passes[0])]
            else:
                assert isinstance(self._forward, LlamaForward)
                logits = self._forward.together(passes)
        # Outside of inference mode: what leaves the engine is an ordinary tensor.
        for one, of_one in zip(work, logits, strict=True):
            one.take(self._pool, of_one)
        if self._is_cuda:
            torch.cuda.synchronize(self.info.device)  # a clock around this call is to see more than a queue

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
        return self._pool.snapshot(slot_of(request), start, stop)

    def release(self, request: Request) -> None:
        """Give the request's slot back; harmless when it has none."""
        if request.slot is None:
            return
        slot, request.slot = request.slot, None
        self._to_restore.pop(slot, None)
        try:
            if request.state is not RequestState.FINISHED:
                # A draft or a pass that did not end may have written behind the newest.
                stop = request.num_computed + self.max_chunks * self.prefill_chunk_tokens
                self._pool.clear(slot, _num_finite(request), stop)
        finally:
            self._pool.release(slot)

    def close(self) -> None:
        """Free the weights and the slots; the engine cannot be used afterwards."""
        del self._forward, self._pool, self._rows
        if self._is_cuda:
            torch.cuda.empty_cache()

    @property
    def _is_cuda(self) -> bool:
        return torch.device(self.info.device).type == "cuda"

    def _restore(self, request: Request) -> None:
        """Copy what waits for the request's slot into it; nothing the second time."""
        self._copy(request, self._to_restore.pop(slot_of(request), ()), 0)

    def _copy(self, request: Request, spans: Sequence[KVSpan], start: int) -> None:
        try:
            self._pool.restore(slot_of(request), spans, start)
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


def _fits(logits: object, vocab_size: int) -> bool:
    return isinstance(logits, Tensor) and logits.dtype == torch.float32 and logits.shape == (vocab_size,)


def _num_finite(request: Request) -> int:
    """Leading tokens whose KV is numbers for sure. Running streams wait while the rest of a long prompt is cleared."""
    if request.state is not RequestState.CANCELLED:
        return 0  # it may have failed because of numbers that are none
    if request.prompt_logits is not None:
        return request.num_computed  # the logits of every pass were looked at
    return min(request.num_restored, request.num_computed)  # what is stored, logits have followed from
