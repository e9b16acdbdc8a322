"""Our engine, store and look-up in this process, wired as the daemon wires them; no HTTP and no event loop."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import torch

from benchmarks.peers.answer import Answer, PeerError
from benchmarks.peers.folder import as_text
from semcache.config import Config, EngineConfig, ModelConfig
from semcache.daemon.asked import model_key
from semcache.daemon.build import load_engine, store_limits
from semcache.daemon.cache.admit import Admission, PromptKV, may_store
from semcache.daemon.cache.lookup import Lookup, Match
from semcache.daemon.cache.policy import OffPolicy
from semcache.daemon.cache.strategy import access
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.threads import compute_with
from semcache.daemon.inbox import Command
from semcache.daemon.loop import EngineLoop
from semcache.daemon.request import CacheMode, CacheOptions, End, Event, Message, Request, RequestState, Sampling, Token
from semcache.daemon.resident import Progress
from semcache.daemon.served import Served
from semcache.store.store import KV_FOLDER, Store

USER = "os:0"
GREEDY = Sampling()
SAMPLED = Sampling(temperature=0.8, seed=7)  # a stored greedy answer is no answer to this
_TIMEOUT_S = 3600.0
_SPOILED = 1e4
_POOL_THREADS = 4


@dataclass(frozen=True)
class Setup:
    """What decides the numbers: all of it is repeated by a process that is to find this one's KV."""

    folder: str
    device: str
    dtype: str
    slots: int
    context_tokens: int

    def config(self) -> Config:
        return Config(
            model=ModelConfig(name=self.folder, device=self.device, dtype=self.dtype),
            engine=EngineConfig(slots=self.slots, max_context_tokens=self.context_tokens),
        )


@dataclass
class _Pending:
    """A request on its way, and when its tokens came."""

    request: Request
    started: float
    stamps: list[float]
    has_begun: threading.Event  # the first token came
    ended: threading.Event = field(default_factory=threading.Event)
    written: Future[float] = field(default_factory=Future)


class Ours:
    """Several caches can be opened over one engine one after the other; `name` says how it is used now."""

    name = "semcache"

    def __init__(self, setup: Setup, home: Path) -> None:
        self._config = setup.config()
        self._num_threads = torch.get_num_threads()
        self._home = home
        self.open_store()  # before the model, as the daemon does
        is_known = threading.Event()

        def on_change() -> None:
            if self._loop.model.state in ("ready", "failed"):
                is_known.set()

        # On the engine thread, as in the daemon: what a thread needs only once is then there before the first request.
        self._loop = EngineLoop(
            self._load, on_change=on_change, drafts=self._config.draft.enabled,
            block_tokens=self._config.cache.block_tokens,
        )  # fmt: skip
        self._loop.start()
        self._loop.load()
        is_known.wait()
        if self._loop.model.error is not None:
            self._loop.stop(_TIMEOUT_S)
            raise self._loop.model.error
        gc.freeze()  # as the daemon does: a collection through all modules holds every thread up for 200 ms
        self._pool = ThreadPoolExecutor(
            _POOL_THREADS, thread_name_prefix="pool", initializer=compute_with, initargs=(1,)
        )
        self._granted = access("per_user", user=USER, allow_global="own")
        engine = self.engine
        self._model = model_key(
            Served(engine.info, engine.tokenizer, engine.numerics, engine.cuts, engine.num_slots),
            block_tokens=self._config.cache.block_tokens,
        )
        self._ids = count()

    def _load(self, progress: Progress) -> Engine:
        compute_with(self._num_threads)
        self.engine = load_engine(self._config, progress)
        self.engine.info = replace(self.engine.info, eos_token_ids=())  # every answer has the length that was asked for
        return self.engine

    def open_store(self) -> None:
        """Open the cache with an empty RAM tier, as after a restart."""
        self._store = Store.open(self._home, store_limits(self._config))
        self._store.wait_until_prepared()  # a daemon loads its model meanwhile
        self._lookup = Lookup(
            self._store, OffPolicy(), lambda: None, drafts=self._config.draft.enabled,
            prefill_ms_per_token=lambda: self._loop.prefill_ms_per_token,
        )  # fmt: skip
        self._admission = Admission(self._store, lambda: None)

    def close_store(self, *, drop_page_cache: bool) -> None:
        """Give the cache back, so that what was in RAM is only on disk, or not even in the page cache."""
        self._store.close()
        if drop_page_cache:
            for path in (self._home / KV_FOLDER).rglob("*.safetensors"):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)  # the kernel drops clean pages only
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)

    def ask(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, *, sampled: bool = False, cache: bool = True,
        store: bool = True, stored_logits: bool = True,
    ) -> list[Answer]:  # fmt: skip
        """Answers to prompts sent all at once, each through look-up, engine and admission.

        `cache` off neither reads nor writes; without `store` nothing is written; without `stored_logits` the last chunk
        is computed even where its logits were found.
        """
        options = CacheOptions(mode=CacheMode.AUTO if cache else CacheMode.OFF, no_store=not store)
        sampling = replace(SAMPLED if sampled else GREEDY, max_tokens=max_tokens)
        pending = [self._pending(prompt, sampling, options) for prompt in prompts]
        for one in pending:
            self._pool.submit(self._start, one, stored_logits)
        return [self._answer(one) for one in pending]

    def spoil_slots(self, num_tokens: int) -> None:
        """Make free slots useless, so that KV which an earlier request left there cannot pass for restored KV.

        A free slot is the last one given back, which often held the very prompt that is asked next. Attention that
        sees one such key sees hardly anything else.
        """
        slots = self.engine._pool

        def spoil() -> None:
            for tensor in (*slots.keys, *slots.values):
                tensor[slots._free[-2:], :, :num_tokens] = _SPOILED

        self._pool.submit(spoil).result()  # on a thread that computes alone, as all but the engine's do

    def settle(self) -> None:
        """Wait until nothing is written any more."""
        self._store.flush()

    def gaps_ms(
        self, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int], max_tokens: int, *, cache: bool = True
    ) -> list[float]:
        """The time between tokens of running streams while a long prompt is prefilled beside them.

        The streams are long enough when some of them still run at the end of the prefill; the others count until then.
        """
        sampling = replace(GREEDY, max_tokens=max_tokens)
        options = CacheOptions(mode=CacheMode.AUTO if cache else CacheMode.OFF)
        streams = [self._pending(prompt, sampling, options) for prompt in prompts]
        for one in streams:
            self._pool.submit(self._start, one, True)
        for one in streams:
            if not one.has_begun.wait(_TIMEOUT_S):
                raise PeerError(f"request {one.request.id} gave no token within {_TIMEOUT_S:.0f} s")
        late = self._pending(long_prompt, replace(GREEDY, max_tokens=1), options)
        self._pool.submit(self._start, late, True)
        for one in (late, *streams):
            self._answer(one)
        first, last = late.started, late.stamps[0]
        return [
            (after - before) * 1e3
            for one in streams
            for before, after in zip(one.stamps, one.stamps[1:], strict=False)
            if after > first and before < last
        ]

    def chunk_and_step_ms(self, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int]) -> tuple[float, float]:
        """The longest prefill chunk of the long prompt and a decode step of the others, with nothing beside them."""
        measured: Future[tuple[float, float]] = Future()

        def measure() -> None:
            try:
                measured.set_result(self._chunk_and_step_ms(prompts, long_prompt))
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                measured.set_exception(error)

        # Where the engine's OpenMP team is: a team of this thread's own would slow down all that comes after.
        self._loop._inbox.put(Command(measure))
        return measured.result(_TIMEOUT_S)

    def _chunk_and_step_ms(self, prompts: Sequence[Sequence[int]], long_prompt: Sequence[int]) -> tuple[float, float]:
        late = self._pending(long_prompt, GREEDY, CacheOptions()).request
        chunks = self._prefilled(late)
        self.engine.release(late)
        rows = [self._pending(prompt, GREEDY, CacheOptions()).request for prompt in prompts]
        for request in rows:
            self._prefilled(request)
        steps = []
        for _ in range(8):
            started = time.perf_counter()
            tokens = self.engine.decode(rows)
            steps.append((time.perf_counter() - started) * 1e3)
            for request, token in zip(rows, tokens, strict=True):
                assert token is not None
                request.emit([token], "")
        for request in rows:
            self.engine.release(request)
        return max(chunks), sorted(steps)[len(steps) // 2]

    def close(self) -> None:
        self._loop.stop(_TIMEOUT_S)
        self._pool.shutdown()
        self._store.close()

    def _pending(self, prompt: Sequence[int], sampling: Sampling, options: CacheOptions) -> _Pending:
        stamps: list[float] = []
        has_begun = threading.Event()

        def publish(event: Event) -> None:
            if isinstance(event, Token):
                stamps.append(time.perf_counter())
                has_begun.set()
            elif isinstance(event, End):
                has_begun.set()  # whoever waits for a token must not wait for ever

        request = Request(
            id=f"bench-{next(self._ids)}", user=USER, model=self.engine.info.name,
            messages=(Message("user", as_text(prompt)),), prompt_tokens=tuple(prompt), sampling=sampling,
            options=options, publish=publish, clock=time.perf_counter,
        )  # fmt: skip
        return _Pending(request, request.times.submitted, stamps, has_begun)

    def _start(self, pending: _Pending, stored_logits: bool) -> None:
        """The daemon's path of a request whose answer has to be computed."""
        try:
            request = pending.request
            match = self._lookup.find_answer(request, self._granted, self._model)
            assert match.answer is None, "a stored answer would be replayed, and nothing be measured"
            self._lookup.find_prefix(request, self._granted, self._model, match, may_arrive_late=stored_logits)
            match.give_kv(request)
            if not stored_logits:
                request.prompt_logits = None
            request.match(match.receipt)
            request.state = RequestState.WAITING
            self._loop.submit(request, lambda done, kv: self._handed_over(pending, match, kv), self._loop.served)
            if match.arriving is not None:
                for span in match.arriving:
                    self._loop.bring(request, span)
                self._loop.bring(request, None)
        except BaseException as error:
            pending.written.set_exception(error)
            pending.has_begun.set()
            pending.ended.set()
            raise

    def _handed_over(self, pending: _Pending, match: Match, kv: PromptKV | None) -> None:
        pending.ended.set()
        self._pool.submit(self._write, pending, match, kv)

    def _write(self, pending: _Pending, match: Match, kv: PromptKV | None) -> None:
        request = pending.request
        try:
            if may_store(request, replayable=self._lookup.may_replay(request)):
                self._admission.store_answer(request, self._granted, match.identity, self._model, None, 0.0)
            if kv is not None:
                self._admission.store_kv(request, self._granted, self._model, kv)
                self._store.flush()  # else the writer would compete with whoever is asked next
            request.restored, request.prompt_logits = [], None
            pending.written.set_result(time.perf_counter())
        except BaseException as error:
            pending.written.set_exception(error)
            raise

    def _answer(self, pending: _Pending) -> Answer:
        if not pending.ended.wait(_TIMEOUT_S):
            raise PeerError(f"request {pending.request.id} did not end within {_TIMEOUT_S:.0f} s")
        settled = pending.written.result(_TIMEOUT_S)
        request = pending.request
        if request.state is not RequestState.FINISHED or request.times.ended is None:
            raise PeerError(f"request {request.id} ended as {request.state}: {request.error}")
        tokens = tuple(request.output_tokens)
        return Answer(
            tokens, pending.started, tuple(pending.stamps[: len(tokens)]), request.times.ended, settled,
            request.num_cached_tokens,
        )  # fmt: skip

    def _prefilled(self, request: Request) -> list[float]:
        """Compute a prompt on the engine thread; the time of each chunk."""
        self.engine.begin(request)
        chunks: list[float] = []
        token = None
        while token is None:
            started = time.perf_counter()
            token = self.engine.prefill(request)
            chunks.append((time.perf_counter() - started) * 1e3)
        request.emit([token], "")
        return chunks
