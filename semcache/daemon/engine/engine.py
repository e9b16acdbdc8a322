"""The engine's front door: tokens in, tokens out. Knows no users, no HTTP and takes no cache decisions.

One thread calls it. The caller owns the order of calls: begin, prefill until a token comes, decode, release.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semcache.daemon.engine.decode import DecodeRow, decode_rows
from semcache.daemon.engine.fingerprint import numerics
from semcache.daemon.engine.kv import SlotPool
from semcache.daemon.engine.model import LoadedModel
from semcache.daemon.engine.prefill import last_chunk_start, next_stop, prefill_chunk
from semcache.daemon.engine.sampler import SampleKey, sample
from semcache.daemon.request import Request
from semcache.errors import EngineError
from semcache.store.tensors import KVSpan


class Engine:
    """A loaded model with its slots; CUDA is a setting whose code is plain and has not run on a card yet."""

    def __init__(self, loaded: LoadedModel, *, num_slots: int, prefill_chunk_tokens: int) -> None:
        self.info = loaded.info
        self.tokenizer = loaded.tokenizer
        self.num_slots = num_slots
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.numerics = numerics(loaded.info.device, loaded.info.dtype, prefill_chunk_tokens)
        self._model = loaded.model
        self._pool = SlotPool(loaded.info, num_slots)

    @property
    def num_free_slots(self) -> int:
        return self._pool.num_free

    def begin(self, request: Request) -> None:
        """Take a slot for the request and copy what was restored into it."""
        self._check(request)
        slot = self._pool.acquire()
        try:
            request.num_computed = self._pool.restore(slot, request.restored)
        except RuntimeError as error:
            self._pool.release(slot)
            raise EngineError(f"restoring {request.num_restored} tokens failed: {error}") from error
        request.slot = slot
        if request.num_computed == request.num_prompt_tokens and request.prompt_logits is None:
            # All KV but no logits: the last chunk runs again, with the shape that it had when it ran first.
            request.num_computed = last_chunk_start(request.num_prompt_tokens, self.prefill_chunk_tokens)

    def prefill(self, request: Request) -> int | None:
        """Run one chunk; the first token of the answer when the prompt is complete, else None.

        A prompt whose KV and logits were both restored needs no forward.
        """
        start, num_prompt_tokens = request.num_computed, request.num_prompt_tokens
        if start < num_prompt_tokens:
            stop = next_stop(start, num_prompt_tokens, self.prefill_chunk_tokens)
            with torch.inference_mode():
                logits = prefill_chunk(
                    self._model,
                    self._pool,
                    self._slot(request),
                    request.prompt_tokens[start:stop],
                    start,
                    is_last=stop == num_prompt_tokens,
                )
            request.num_computed = stop
            if logits is None:
                return None
            # Copied outside inference mode: what leaves the engine is an ordinary tensor.
            request.prompt_logits = logits.to("cpu", torch.float32, copy=True)
        assert isinstance(request.prompt_logits, Tensor), request.id
        return sample(request.prompt_logits[None], [_sample_key(request)])[0]

    def decode(self, requests: Sequence[Request]) -> list[int]:
        """The next token of each request, from one forward; the newest output token of each is the input."""
        rows = [DecodeRow(self._slot(request), request.num_computed, _newest(request)) for request in requests]
        for request in requests:
            if request.num_computed >= self.info.context_tokens:
                raise EngineError(f"request {request.id} has filled the context of {self.info.context_tokens} tokens")
        with torch.inference_mode():
            logits = decode_rows(self._model, self._pool, rows)  # [rows, vocab]
            for request in requests:
                request.num_computed += 1
            return sample(logits, [_sample_key(request) for request in requests])

    def prompt_kv(self, request: Request, start: int) -> KVSpan:
        """Host copy of the KV of prompt tokens [start, num_prompt_tokens)."""
        assert request.num_computed >= request.num_prompt_tokens, request.id
        return self._pool.snapshot(self._slot(request), start, request.num_prompt_tokens)

    def release(self, request: Request) -> None:
        """Give the request's slot back; harmless when it has none."""
        if request.slot is not None:
            self._pool.release(request.slot)
            request.slot = None

    def close(self) -> None:
        """Free the weights and the slots; the engine cannot be used afterwards."""
        del self._model, self._pool
        if torch.device(self.info.device).type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, request: Request) -> None:
        num_tokens, context_tokens = request.num_prompt_tokens, self.info.context_tokens
        if not 0 < num_tokens <= context_tokens:
            raise EngineError(f"the prompt has {num_tokens} tokens; 1 to {context_tokens} can be served")
        if not 0 <= min(request.prompt_tokens) <= max(request.prompt_tokens) < self.info.vocab_size:
            raise EngineError(f"the prompt has a token id outside the model's vocabulary of {self.info.vocab_size}")
        num_restored = sum(span.num_tokens for span in request.restored)
        if num_restored != request.num_restored or num_restored > num_tokens:
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


def _newest(request: Request) -> int:
    expected = request.num_prompt_tokens + len(request.output_tokens) - 1
    assert request.num_computed == expected, (request.id, request.num_computed, expected)
    return request.output_tokens[-1]


def _sample_key(request: Request) -> SampleKey:
    seed = request.sampling.seed
    return SampleKey(request.sampling, request.noise_seed if seed is None else seed, request.num_computed)
