"""The state of the whole daemon in one picture: what `status`, `ps` and `top` show, and when it is ready."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from semcache import __version__
from semcache.config import Config
from semcache.daemon.cache.embedder import Embedder
from semcache.daemon.cache.verified import VerifiedPolicy
from semcache.daemon.journal import Journal
from semcache.daemon.loop import EngineLoop
from semcache.daemon.receipts import owner_of, wrong_hits
from semcache.daemon.service import Service
from semcache.errors import SemcacheError, UnavailableError
from semcache.store.store import Store
from semcache.wire.protocol import OUTCOMES, PROTOCOL
from semcache.wire.status import STATUS_SCHEMA, ModelStatus, SemanticStatus, Status


class EmbedderSlot:
    """The embedder once it is loaded; until then, or without one, semantic search is off and says why."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.embedder: Embedder | None = None
        self.state = "off" if name == "off" else "loading"
        self.problem: str | None = None

    def get(self) -> Embedder | None:
        return self.embedder

    def load(self) -> None:
        """Blocking; a failure is a state, not an exception: everything but semantic search works without."""
        if self.state == "off":
            return
        try:
            self.embedder = Embedder.load(self.name)
            self.state = "ready"
        except SemcacheError as error:
            self.state, self.problem = "failed", error.message


class Overview:
    """Reads all parts, changes none."""

    def __init__(
        self, *, config: Config, engine: EngineLoop, service: Service, journal: Journal, store: Store,
        embedder: EmbedderSlot, policy: VerifiedPolicy | None, data_dir: Path, socket: Path, autostarted: bool,
    ) -> None:  # fmt: skip
        self._config = config
        self._engine = engine
        self._service = service
        self._journal = journal
        self._store = store
        self._embedder = embedder
        self._policy = policy
        self._data_dir = data_dir
        self._socket = socket
        self._autostarted = autostarted
        self._started = time.monotonic()
        self._changed: asyncio.Event | None = None

    @property
    def state(self) -> str:
        if self._service.is_draining:
            return "draining"
        if self._engine.served is None or self._embedder.state == "loading":
            return "failed" if self._engine.model.state == "failed" else "loading"
        return "ready"

    def not_ready(self) -> SemcacheError | None:
        """Why requests would be refused now."""
        state = self.state
        if state == "failed":
            return self._engine.model.error
        if state == "draining":
            return UnavailableError("the daemon is shutting down", retry_after_s=5)
        if state == "loading":
            model = self._engine.model
            percent = f" {model.progress:.0%}" if model.progress is not None else ""
            what = f"model: {model.stage}{percent}" if model.state == "loading" else "embedder"
            return UnavailableError(f"loading ({what})", retry_after_s=1)
        return None

    # Waiting, on the event loop

    def changed(self) -> None:
        """Wake everybody who waits; call on the event loop."""
        if self._changed is not None:
            self._changed.set()
        self._changed = asyncio.Event()
        self._journal.tell("model", self.model())

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for a change that makes `condition` true, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._changed = self._changed or asyncio.Event()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def until_settled(self, timeout_s: float) -> None:
        await self.until(lambda: self.state != "loading" and self._engine.model.state != "loading", timeout_s)

    # Pictures

    def model(self) -> ModelStatus:
        model, served = self._engine.model, self._engine.served
        info = served.info if served is not None else None
        return {
            "name": info.name if info else self._config.model.name,
            "state": model.state,
            "stage": model.stage,
            "progress": model.progress,
            "error": model.error.message if model.error is not None else None,
            "architecture": info.architecture if info else None,
            "parameters": info.num_parameters if info else None,
            "device": str(info.device) if info else None,
            "dtype": str(info.dtype).removeprefix("torch.") if info else None,
            "context_tokens": info.context_tokens if info else None,
            "slots": served.num_slots if served else None,
            "fingerprint": info.fingerprint if info else None,
            "weights_bytes": info.weights_bytes if info else None,
            "kv_bytes_per_token": info.kv_bytes_per_token if info else None,
            "unloads_in_s": self._engine.unloads_in_s,
        }

    def status(self) -> Status:
        """Everything; reads the database, so on a pool thread."""
        tiers = self._store.tier_status()
        return {
            "schema": STATUS_SCHEMA,
            "version": __version__,
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "state": self.state,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "autostarted": self._autostarted,
            "socket": str(self._socket),
            "url": None,
            "data_dir": str(self._data_dir),
            "model": self.model(),
            "queue": {"running": self._engine.num_running, "waiting": self._service.num_waiting},
            "entries": self._store.num_entries(),
            "blocks": tiers["disk"].items,
            "tiers": {
                name: {"used_bytes": tier.used_bytes, "limit_bytes": tier.limit_bytes, "items": tier.items}
                for name, tier in tiers.items()
            },
            "outcomes": {outcome: self._journal.outcomes[outcome] for outcome in OUTCOMES},
            "latency": self._journal.latency(),
            "semantic": self._semantic(),
            "counters": {**self._store.counters(), "engine_failures": self._engine.num_failures},
            "warnings": self._warnings(),
        }

    def _semantic(self) -> SemanticStatus:
        semantic, decisions = self._config.semantic, self._store.decisions
        num_audits, num_wrong = decisions.wrong_hits()
        suspended = self._policy.suspended() if self._policy is not None else []
        return {
            "policy": semantic.policy,
            "threshold": semantic.threshold,
            "max_error": semantic.max_error,
            "max_hit_error": semantic.max_hit_error,
            "audit_rate": semantic.audit_rate,
            "equivalence": semantic.equivalence,
            "embedder": self._embedder.name,
            "state": self._embedder.state,
            "reason": self._embedder.problem,
            "due_audits": decisions.num_due(),
            "suspended": [owner_of(scope) for scope in suspended],
            "drafts": self._config.draft.enabled,
            **wrong_hits(num_audits, num_wrong),
        }

    def _warnings(self) -> list[str]:
        warnings = list(self._store.warnings)
        if self._embedder.problem is not None:
            warnings.append(f"semantic search is off: {self._embedder.problem}")
        return warnings
