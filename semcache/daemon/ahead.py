"""Prefill ahead: once nobody asks, what the next turn of a conversation begins with is computed and stored.

The answer's tokens go through the same chunks as any prompt, so the next turn restores them bit for bit. Idle work: an
interrupted turn stays queued and keeps the pieces that were stored.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from semcache.daemon.asked import model_key
from semcache.daemon.cache.admit import Admission, PromptKV
from semcache.daemon.cache.lookup import Lookup, ModelKey, PromptKeys
from semcache.daemon.idle import Compute, Worked
from semcache.daemon.request import CacheMode, CacheOptions, Request, RequestState, Sampling
from semcache.daemon.served import Served
from semcache.daemon.turns import Turn, Turns
from semcache.store.store import Store

log = logging.getLogger("semcache.ahead")

# So many tokens are computed before they are stored, at most: an interruption loses no more than that.
PIECE_TOKENS = 1024


class PrefillAhead:
    """Works off the queued turns, the newest first."""

    def __init__(
        self, *, turns: Turns, lookup: Lookup, admission: Admission, store: Store, pool: Executor,
        chunk_tokens: int, block_tokens: int, piece_tokens: int = PIECE_TOKENS,
        on_done: Callable[[Turn], None] = lambda turn: None,
    ) -> None:  # fmt: skip
        self._turns = turns
        self._lookup = lookup
        self._admission = admission
        self._store = store
        self._pool = pool
        self._chunk = chunk_tokens
        self._block = block_tokens
        self._max_chunks = max(1, piece_tokens // chunk_tokens)
        # What is interrupted is lost, so pieces become smaller with every interruption, down to one chunk: whoever
        # leaves time for one chunk between two questions still gets on. They grow again with every one that is stored.
        self._num_chunks = self._max_chunks
        self._on_done = on_done

    async def work(self, served: Served, compute: Compute) -> Worked:
        """One piece of the newest turn."""
        turn = self._turns.next()
        if turn is None:
            return Worked.NOTHING
        try:
            goes_on = await self._extend(turn, served, compute)
        except Exception:
            log.exception("the next turn of %s was not prefilled", turn.request_id)
            goes_on = False
        if not goes_on:
            self._turns.drop(turn)
        return Worked.SOMETHING

    async def _extend(self, turn: Turn, served: Served, compute: Compute) -> bool:
        """False when nothing more can be done for it."""
        running = asyncio.get_running_loop()
        model = model_key(served, block_tokens=self._block)
        request = await running.run_in_executor(self._pool, self._prepare, turn, model)
        if request is None:
            return False
        kv = await compute(request)
        if request.state is RequestState.CANCELLED:
            self._num_chunks = max(1, self._num_chunks // 2)
            return True
        if request.state is not RequestState.FINISHED or kv is None:
            return False
        store = partial(self._store_piece, request, turn, model, kv)
        if not await running.run_in_executor(self._pool, self._turns.keep, turn, store):
            return False  # forgotten meanwhile, or there is no room for it
        self._num_chunks = min(self._max_chunks, 2 * self._num_chunks)
        turn.num_done = request.num_prompt_tokens
        if turn.num_done < len(turn.tokens):
            return True
        self._on_done(turn)
        return False

    def _prepare(self, turn: Turn, model: ModelKey) -> Request | None:
        """A prefill up to the end of the next piece, with what is stored of it; None when all of it is."""
        if turn.fingerprint != model.fingerprint:
            return None
        # It only grows, whatever the store drops meanwhile, so that every turn comes to its end.
        turn.num_done = max(turn.num_done, self._num_stored(turn, model))
        if turn.num_done >= len(turn.tokens):
            return None
        stop = turn.num_done + self._num_chunks * self._chunk
        request = Request(
            id=f"turn_{secrets.token_hex(8)}", user=turn.user, model=model.name, messages=turn.messages,
            prompt_tokens=turn.tokens[:stop], sampling=Sampling(max_tokens=1),
            options=CacheOptions(mode=CacheMode.PREFIX), publish=lambda _event: None,
        )  # fmt: skip
        self._lookup.find(request, turn.access, model, preview=True).give_kv(request)
        return request

    def _num_stored(self, turn: Turn, model: ModelKey) -> int:
        """Leading tokens in full chunks that every scope holds already."""
        num_stored = len(turn.tokens)
        for scope in turn.access.write:
            missing = self._store.missing(PromptKeys.of(scope, model, turn.tokens).blocks)
            num_stored = min([num_stored, *(key.first_token for key in missing)])
        return num_stored // self._chunk * self._chunk

    def _store_piece(self, request: Request, turn: Turn, model: ModelKey, kv: PromptKV) -> bool:
        # No full-prompt record: nobody asks with a prompt that ends in the middle of a conversation's markup.
        return self._admission.store_kv(request, turn.access, model, kv, tail=False)
