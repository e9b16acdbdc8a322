"""What an ended request leaves for the cache: its KV on the host, and what computing it cost. Engine thread only.

The KV of a long prompt takes longer to copy than running streams may wait, so it leaves its slot piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from semcache.daemon.cache.admit import PromptKV, wants_storing
from semcache.daemon.engine.engine import Engine
from semcache.daemon.request import Request
from semcache.store.tensors import KVSpan

# A shorter prompt says more about the cost of a call than about speed.
_TELLING_TOKENS = 64
# A piece has no more, unless one block has: running streams wait for a piece after each of their steps.
PIECE_BYTES = 16 << 20

HandOver = Callable[[Request, PromptKV | None], None]


@dataclass
class _Leaving:
    """An ended request whose KV is on its way out of its slot."""

    request: Request
    logits: torch.Tensor
    ms_per_token: float
    first_token: int  # of those that are copied: what lies before is stored
    num_copied: int  # where the next piece begins
    num_tokens: int  # where the last one ends
    spans: list[KVSpan] = field(default_factory=list)


class Handovers:
    """Who gets the KV of each request under way, how long its prefill took, and whose KV is being copied."""

    def __init__(self, *, block_tokens: int, piece_bytes: int) -> None:
        self._block_tokens = block_tokens
        self._piece_bytes = piece_bytes
        self._hand_over: dict[str, HandOver] = {}
        self._prefill_ms: dict[str, float] = {}
        self._leaving: dict[str, _Leaving] = {}  # the one that ended first comes first
        self.prefill_ms_per_token: float | None = None  # of long prompts lately; None before the first

    def add(self, request: Request, hand_over: HandOver) -> None:
        self._hand_over[request.id] = hand_over
        self._prefill_ms[request.id] = 0.0

    def add_prefill(self, request: Request, took_ms: float) -> None:
        """Count one chunk of its prompt."""
        self._prefill_ms[request.id] += took_ms

    @property
    def leaving(self) -> Request | None:
        """Whose KV is copied next; it needs its slot until then."""
        return next(iter(self._leaving.values())).request if self._leaving else None

    def leave(self, request: Request, engine: Engine) -> bool:
        """Begin to copy the KV of an ended request out of its slot; False where nothing of it is to be stored."""
        logits = request.prompt_logits
        if request.slot is None or not wants_storing(request):
            return False
        if not isinstance(logits, torch.Tensor):
            return False  # cancelled before the prompt was through
        if request.is_arriving:
            return False  # ended before its KV, which the store has, was read
        ms_per_token = self._learn_speed(request, request.num_prompt_tokens - request.num_restored)
        first = request.num_stored // self._block_tokens * self._block_tokens
        self._leaving[request.id] = _Leaving(request, logits, ms_per_token, first, first, engine.num_reusable(request))
        return True

    def copy_piece(self, engine: Engine) -> PromptKV | None:
        """Copy a piece of what is `leaving`; all of its KV once that was the last one.

        A span for each block, so that the store can keep it as it is.
        """
        leaving, size = next(iter(self._leaving.values())), self._block_tokens
        for _ in range(max(1, self._piece_bytes // (size * engine.info.kv_bytes_per_token))):
            stop = min(leaving.num_tokens, (leaving.num_copied // size + 1) * size)
            leaving.spans.append(engine.kv(leaving.request, leaving.num_copied, stop))
            leaving.num_copied = stop
            if stop == leaving.num_tokens:
                return PromptKV(leaving.spans, leaving.logits, leaving.ms_per_token, leaving.first_token)
        return None

    def finish(self, request: Request, kv: PromptKV | None) -> None:
        """Hand it over; the request is forgotten."""
        del self._prefill_ms[request.id]
        self._leaving.pop(request.id, None)
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
