"""How one job reaches a semcache daemon and what is measured at this end. `target.py` does it for other servers."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, cast

from semcache.client import Client
from semcache.errors import DaemonUnreachableError, EngineError, SemcacheError
from semcache.replay.options import ReplayOptions
from semcache.replay.plan import Job
from semcache.replay.record import Reply
from semcache.wire.receipts import AskReceipt


@dataclass(frozen=True)
class CacheUse:
    """What a request tells the cache; all None where the server has none of ours."""

    strategy: str | None = None
    mode: str | None = None
    namespace: str | None = None


class Sender(Protocol):
    """A server that answers jobs."""

    async def send(self, job: Job, use: CacheUse) -> Reply:
        """One answer, streamed and timed; raises SemcacheError."""

    async def is_reachable(self) -> bool:
        """Whether a further request has a chance, asked after a connection broke."""

    async def describe(self) -> dict[str, Any]:
        """What answered: model, version, whatever it tells; goes into the settings of the summary."""

    async def clear(self, namespace: str) -> None:
        """Remove an isolated namespace."""


def base_body(job: Job, options: ReplayOptions) -> dict[str, Any]:
    """The part of the request that every OpenAI-compatible server understands. Greedy, so that runs can be compared."""
    system = [{"role": "system", "content": job.row.context}] if job.row.context else []
    body: dict[str, Any] = {
        "messages": [*system, {"role": "user", "content": job.row.question}],
        "temperature": 0,
    }
    given = {"model": options.model, "max_tokens": options.max_tokens, "user": job.user}
    return body | {name: value for name, value in given.items() if value is not None}


class DaemonSender:
    """Jobs through the semcache client; the outcome is the daemon's word, the times are ours."""

    def __init__(self, client: Client, options: ReplayOptions) -> None:
        self._client = client
        self._options = options

    async def send(self, job: Job, use: CacheUse) -> Reply:
        extras = {"cache_strategy": use.strategy, "cache": use.mode, "cache_namespace": use.namespace}
        body = base_body(job, self._options) | {name: value for name, value in extras.items() if value is not None}
        receipt: AskReceipt | None = None
        first: float | None = None
        started = time.perf_counter()
        async with aclosing(cast("Any", self._client.ask_stream(body))) as events:
            async for event in events:
                if isinstance(event, str):
                    first = first or time.perf_counter()
                elif "schema" in event:
                    receipt = cast("AskReceipt", event)
        ended = time.perf_counter()
        if receipt is None:
            raise EngineError("the answer ended without a receipt")
        return Reply(
            answer=receipt["answer"],
            outcome=receipt["cache"]["outcome"],
            ttft_ms=None if first is None else elapsed_ms(started, first),
            total_ms=elapsed_ms(started, ended),
            request_id=receipt["id"],
            finish_reason=receipt["finish_reason"],
            strategy=receipt["cache"]["strategy"],
            cache=dict(receipt["cache"]),
            usage=dict(receipt["usage"]),
            timing_ms=dict(receipt["timing_ms"]),
        )

    async def is_reachable(self) -> bool:
        try:
            await self._client.status()
        except DaemonUnreachableError:
            return False
        except SemcacheError:
            pass  # it answered
        return True

    async def describe(self) -> dict[str, Any]:
        status = await self._client.status()
        model = status["model"]
        return {
            "model": model["name"],
            "fingerprint": model["fingerprint"],
            "device": model["device"],
            "dtype": model["dtype"],
            "slots": model["slots"],
            "semantic": status["semantic"],
            "daemon_version": status["version"],
            "daemon_pid": status["pid"],
        }

    async def clear(self, namespace: str) -> None:
        await self._client.clear(namespace=namespace, keep_pinned=False)


def elapsed_ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 3)
