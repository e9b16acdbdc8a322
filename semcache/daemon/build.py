"""The composition root: the only place that constructs the daemon's parts, once, in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from fastapi import FastAPI

from semcache.config import Config
from semcache.daemon import admin, generate, insight, openai
from semcache.daemon.aftermath import Aftermath
from semcache.daemon.ahead import PrefillAhead
from semcache.daemon.app import create_app
from semcache.daemon.audits import Auditor
from semcache.daemon.cache.admit import Admission
from semcache.daemon.cache.equivalence import make_equivalence
from semcache.daemon.cache.evidence import EvidenceBook
from semcache.daemon.cache.lessons import Lessons
from semcache.daemon.cache.lookup import Lookup
from semcache.daemon.cache.marks import MarkedPairs
from semcache.daemon.cache.policies import make_policy
from semcache.daemon.cache.verified import VerifiedPolicy
from semcache.daemon.computation import Computations
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.machine import memory_bytes
from semcache.daemon.engine.memory import free_bytes, lacking, slots_that_fit
from semcache.daemon.engine.model import load_model
from semcache.daemon.engine.threads import compute_with
from semcache.daemon.flights import Flights
from semcache.daemon.headroom import Headroom
from semcache.daemon.idle import IdleTime
from semcache.daemon.journal import Journal
from semcache.daemon.library import Library
from semcache.daemon.loop import EngineLoop
from semcache.daemon.overview import EmbedderSlot, Overview
from semcache.daemon.receipts import audit_event, turn_event
from semcache.daemon.resident import Progress
from semcache.daemon.service import Service
from semcache.daemon.trust import Trust
from semcache.daemon.turns import Turns
from semcache.store.limits import StoreLimits
from semcache.store.store import Store

log = logging.getLogger("semcache.daemon")

_POOL_THREADS = 4
_MIN_WRITE_QUEUE_BYTES = 128 << 20


@dataclass(frozen=True)
class Daemon:
    """The assembled parts that the process's main function starts and stops."""

    app: FastAPI
    store: Store
    engine: EngineLoop
    service: Service
    journal: Journal
    overview: Overview
    embedder: EmbedderSlot
    pool: ThreadPoolExecutor


def build(
    config: Config, data_dir: Path, *, socket: Path, autostarted: bool, event_loop: asyncio.AbstractEventLoop,
    on_progress: Progress, shut_down: Callable[[float], None],
) -> Daemon:  # fmt: skip
    """Open the store and wire everything; nothing is loaded yet. Raises StoreError."""
    store = Store.open(data_dir, store_limits(config))
    embedder = EmbedderSlot(config.semantic.embedder)
    semantic = config.semantic
    marks = MarkedPairs(store.evidence.load_negatives, store.evidence.add_negative)
    policy = make_policy(
        semantic.policy, threshold=semantic.threshold, max_error=semantic.max_error,
        max_hit_error=semantic.max_hit_error, audit_rate=semantic.audit_rate, book=EvidenceBook(store.evidence),
        marks=marks,
    )  # fmt: skip
    learner = policy if isinstance(policy, VerifiedPolicy) else None
    lessons = Lessons(
        store, learner, make_equivalence(semantic.equivalence, embedder.get), marks=marks,
        audit_rate=semantic.audit_rate,
        asks_judge=semantic.equivalence == "judge",
    )  # fmt: skip
    admission = Admission(store, embedder.get)
    journal = Journal(store)
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="pool", initializer=compute_with, initargs=(1,))

    def on_change() -> None:
        event_loop.call_soon_threadsafe(overview.changed)

    def load(progress: Progress) -> Engine:
        def both(stage: str, share: float | None) -> None:
            progress(stage, share)
            on_progress(stage, share)

        compute_with(num_threads)
        return load_engine(config, both)

    engine = EngineLoop(
        load, on_change=on_change, keep_alive_s=config.daemon.keep_alive_s, drafts=config.draft.enabled,
        block_tokens=config.cache.block_tokens,
    )  # fmt: skip
    lookup = Lookup(
        store, policy, embedder.get, marks=marks, reuse_sampled=config.cache.reuse_sampled,
        drafts=config.draft.enabled, prefill_ms_per_token=lambda: engine.prefill_ms_per_token,
    )  # fmt: skip
    auditor = Auditor(
        store=store, lessons=lessons, pool=pool,
        on_audited=lambda decision, same: journal.tell("cache", audit_event(decision, same)),
    )  # fmt: skip
    chunk_tokens = config.engine.prefill_chunk_tokens
    turns = Turns(chunk_tokens=chunk_tokens, exactness=config.cache.exactness)
    ahead = PrefillAhead(
        turns=turns, lookup=lookup, admission=admission, store=store, pool=pool, chunk_tokens=chunk_tokens,
        block_tokens=config.cache.block_tokens,
        on_done=lambda turn: journal.tell("cache", turn_event(turn.user, turn.request_id, len(turn.tokens))),
    )  # fmt: skip
    # Somebody may be typing the next turn; an audit has time.
    idle = IdleTime(engine=engine, chores=[ahead, auditor])
    flights, aftermath = Flights(), Aftermath(pool)
    computations = Computations(
        max_queue=config.daemon.max_queue, headroom=Headroom(store.limits.ram_bytes), engine=engine, lookup=lookup,
        admission=admission, lessons=lessons, turns=turns, journal=journal, flights=flights, aftermath=aftermath,
        pool=pool,
    )  # fmt: skip
    service = Service(
        config=config, loop=engine, lookup=lookup, lessons=lessons, turns=turns, idle=idle, journal=journal,
        flights=flights, aftermath=aftermath, computations=computations, pool=pool,
    )  # fmt: skip
    overview = Overview(
        config=config, engine=engine, service=service, journal=journal, store=store, embedder=embedder,
        policy=learner, data_dir=data_dir, socket=socket, autostarted=autostarted,
    )  # fmt: skip
    library = Library(
        config=config, store=store, forget_scope=lessons.forget_scope, forget_entry=lessons.forget_entry,
        save_scope=lessons.save, forget_turns=turns.forget_scope, forget_conversation=turns.forget_conversation,
        forget_matches=journal.forget_matches,
    )  # fmt: skip
    trust = Trust(config=config, store=store, policy=learner, lessons=lessons, library=library, journal=journal)
    app = create_app(
        [
            openai.routes(config=config, service=service, engine=engine),
            generate.routes(config=config, service=service),
            admin.routes(
                overview=overview,
                library=library,
                journal=journal,
                engine=engine,
                service=service,
                trust=trust,
                embedder=embedder,
                pool=pool,
                shut_down=shut_down,
            ),
            insight.routes(config=config, service=service, trust=trust, overview=overview, pool=pool),
        ]
    )
    return Daemon(app, store, engine, service, journal, overview, embedder, pool)


def load_engine(config: Config, progress: Progress) -> Engine:
    """Load the configured model and size its slots; runs on the engine thread. Raises ModelLoadError."""
    loaded = load_model(
        config.model.name, device=config.model.device, dtype=config.model.dtype,
        max_context_tokens=config.engine.max_context_tokens, progress=progress,
    )  # fmt: skip
    num_slots, free = config.engine.slots, free_bytes(loaded.info.device)
    if not num_slots:
        num_slots, sentence = slots_that_fit(loaded.info, free)
        log.info("%s", sentence)
    elif (warning := lacking(loaded.info, num_slots, free)) is not None:
        log.warning("%s", warning)
    return Engine(
        loaded, num_slots=num_slots, prefill_chunk_tokens=config.engine.prefill_chunk_tokens,
        tie_margin=config.engine.tie_margin, exactness=config.cache.exactness,
    )  # fmt: skip


def store_limits(config: Config) -> StoreLimits:
    """Byte budgets of the tiers; an automatic RAM tier follows this machine, or what the container may use of it."""
    cache = config.cache
    ram_bytes = cache.ram_bytes or memory_bytes() // 10
    return StoreLimits(
        ram_bytes=ram_bytes, disk_bytes=cache.disk_bytes, user_quota_bytes=cache.user_quota_bytes, ttl_s=cache.ttl_s,
        eviction=cache.eviction, durable=cache.durable,
        # Prompts that end together are handed over together; what waits of them serves like the RAM tier.
        write_queue_bytes=max(_MIN_WRITE_QUEUE_BYTES, ram_bytes // 4),
    )  # fmt: skip
