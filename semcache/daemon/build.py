"""The composition root: the only place that constructs the daemon's parts, once, in order."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from semcache.config import Config
from semcache.daemon import admin, generate, openai
from semcache.daemon.app import create_app
from semcache.daemon.cache.admit import Admission
from semcache.daemon.cache.lookup import Lookup
from semcache.daemon.cache.policy import make_policy
from semcache.daemon.engine.engine import Engine
from semcache.daemon.engine.memory import free_bytes, slots_that_fit
from semcache.daemon.engine.model import load_model
from semcache.daemon.journal import Journal
from semcache.daemon.library import Library
from semcache.daemon.loop import EngineLoop, Progress
from semcache.daemon.overview import EmbedderSlot, Overview
from semcache.daemon.service import Service
from semcache.store.store import Store, StoreLimits

log = logging.getLogger("semcache.daemon")

_POOL_THREADS = 4


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
    store = Store.open(data_dir, store_limits(config, data_dir))
    embedder = EmbedderSlot(config.semantic.embedder)
    policy = make_policy(config.semantic.policy, threshold=config.semantic.threshold)
    lookup = Lookup(store, policy, embedder.get, reuse_sampled=config.cache.reuse_sampled)
    admission = Admission(store, embedder.get, ttl_s=config.cache.ttl_s)
    journal = Journal(store)
    pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="pool")

    def on_change() -> None:
        event_loop.call_soon_threadsafe(overview.changed)

    def load(progress: Progress) -> Engine:
        def both(stage: str, share: float | None) -> None:
            progress(stage, share)
            on_progress(stage, share)

        return load_engine(config, both)

    engine = EngineLoop(load, on_change=on_change, keep_alive_s=config.daemon.keep_alive_s)
    service = Service(config=config, loop=engine, lookup=lookup, admission=admission, journal=journal, pool=pool)
    overview = Overview(
        config=config, engine=engine, service=service, journal=journal, store=store, embedder=embedder,
        data_dir=data_dir, socket=socket, autostarted=autostarted,
    )  # fmt: skip
    library = Library(config=config, store=store)
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
                pool=pool,
                shut_down=shut_down,
            ),
        ]
    )
    return Daemon(app, store, engine, service, journal, overview, embedder, pool)


def load_engine(config: Config, progress: Progress) -> Engine:
    """Load the configured model and size its slots; runs on the engine thread. Raises ModelLoadError."""
    loaded = load_model(
        config.model.name, device=config.model.device, dtype=config.model.dtype,
        max_context_tokens=config.engine.max_context_tokens, progress=progress,
    )  # fmt: skip
    fitting, sentence = slots_that_fit(loaded.info, free_bytes(loaded.info.device))
    log.info("%s", sentence)
    return Engine(
        loaded, num_slots=config.engine.slots or fitting, prefill_chunk_tokens=config.engine.prefill_chunk_tokens
    )


def store_limits(config: Config, data_dir: Path) -> StoreLimits:
    """Byte budgets of the tiers; automatic ones follow this machine."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    free_disk_bytes = shutil.disk_usage(existing).free
    cache = config.cache
    return StoreLimits(
        ram_bytes=cache.ram_bytes or memory_bytes // 10,
        disk_bytes=cache.disk_bytes or min(20 * 10**9, free_disk_bytes // 4),
        user_quota_bytes=cache.user_quota_bytes, ttl_s=cache.ttl_s, eviction=cache.eviction, durable=cache.durable,
    )  # fmt: skip
