"""What an ended request leaves for the cache: its KV on the host, and what computing it cost. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable

import torch

from semcache.daemon.cache.admit import PromptKV, wants_storing
from semcache.daemon.engine.engine import Engine
from semcache.daemon.request import Request

# A shorter prompt says more about the cost of a call than about speed.
_TELLING_TOKENS = 64

HandOver = Callable[[Request, PromptKV | None], None]


class Handovers:
    """Who gets the KV of each request under way, and how long its prefill took."""

    def __init__(self) -> None:
        self._hand_over: dict[str, HandOver] = {}
        self._prefill_ms: dict[str, float] = {}
        self.prefill_ms_per_token: float | None = None  # of long prompts lately; None before the first

    def add(self, request: Request, hand_over: HandOver) -> None:
        self._hand_over[request.id] = hand_over
        self._prefill_ms[request.id] = 0.0

    def add_prefill(self, request: Request, took_ms: float) -> None:
        """Count one chunk of its prompt."""
        self._prefill_ms[request.id] += took_ms

    def take(self, request: Request, engine: Engine) -> PromptKV | None:
        """Copy its KV out of its slot; None where nothing of it is to be stored."""
        if request.slot is None or not wants_storing(request):
            return None
        if not isinstance(request.prompt_logits, torch.Tensor):
            return None  # cancelled before the prompt was through
        if request.is_arriving:
            return None  # cancelled or ended before its KV, which the store has, was read
        spans = list(request.restored)
        num_fresh = request.num_prompt_tokens - request.num_restored
        ms_per_token = self._learn_speed(request, num_fresh)
        if num_fresh:
            spans.append(engine.prompt_kv(request, request.num_restored))
        if engine.reuses_answers and request.num_computed > request.num_prompt_tokens:
            spans.append(engine.answer_kv(request))
        return PromptKV(spans, request.prompt_logits, ms_per_token)

    def finish(self, request: Request, kv: PromptKV | None) -> None:
        """Hand it over; the request is forgotten."""
        del self._prefill_ms[request.id]
        self._hand_over.pop(request.id)(request, kv)

    def _learn_speed(self, request: Request, num_fresh: int) -> float:
        """What computing a prompt token takes: the average of long prompts, and until there is one this request's own.

        A few tokens behind much restored KV say nothing: a pass has a price of its own, however few tokens it takes.
        """
        own, known = self._prefill_ms[request.id] / max(1, num_fresh), self.prefill_ms_per_token
        if num_fresh >= _TELLING_TOKENS:
            known = self.prefill_ms_per_token = own if known is None else 0.8 * known + 0.2 * own
        if known is not None:
            return known
        return own if num_fresh else 0.0
