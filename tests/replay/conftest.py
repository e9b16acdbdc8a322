"""A small daemon over a real Unix socket: it answers, remembers what it saw, and fails when told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from semcache.client import Client
from semcache.replay.dataset import Dataset, Row
from semcache.replay.options import ReplayOptions
from semcache.replay.progress import Progress
from semcache.replay.record import Reply, RequestRecord
from semcache.replay.replay import Replay, Result, begin
from semcache.replay.sender import DaemonSender
from semcache.wire.protocol import PROTOCOL
from semcache.wire.receipts import ASK_SCHEMA

HEADERS = {"X-Semcache-Protocol": str(PROTOCOL), "X-Semcache-Version": "0.1.0"}


@dataclass
class FakeDaemon:
    """Exact hits within a namespace, semantic hits as listed in `donors`, everything else a miss."""

    socket: Path
    answers: dict[str, str] = field(default_factory=dict)
    donors: dict[str, str] = field(default_factory=dict)  # question -> answer of another question
    failures: dict[str, list[str]] = field(default_factory=dict)  # question -> error codes, one per attempt
    delay_s: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)
    seen: set[tuple[Any, ...]] = field(default_factory=set)
    num_running: int = 0
    max_running: int = 0
    die_after: int | None = None
    server: uvicorn.Server | None = None

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", lambda _request: JSONResponse({"data": [{"id": "mini"}]})),
                Route("/v1/semcache/status", self._status),
                Route("/v1/semcache/clear", self._clear, methods=["POST"]),
                Route("/ready", lambda _request: JSONResponse({"status": "ready"}, headers=HEADERS)),
            ]
        )

    async def _status(self, _request: Request) -> Response:
        model = {"name": "mini", "fingerprint": "f", "device": "cpu", "dtype": "float32", "slots": 4}
        body = {"version": "0.1.0", "pid": 0, "state": "ready", "model": model, "semantic": {"policy": "threshold"}}
        return JSONResponse(body, headers=HEADERS)

    async def _clear(self, request: Request) -> Response:
        assert self.num_running == 0, "the namespace is removed while requests are running"
        self.cleared.append((await request.json())["namespace"])
        return JSONResponse({"entries": 1, "blocks": 1}, headers=HEADERS)

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self.die_after is not None and len(self.bodies) > self.die_after:
            self._die()
        question = body["messages"][-1]["content"]
        if codes := self.failures.get(question):
            code = codes.pop(0)
            status = {"queue_full": 429, "unavailable": 503}.get(code, 500)
            error = {"message": f"{code}!", "type": "server_error", "param": None, "code": code}
            return JSONResponse({"error": error}, status_code=status, headers=HEADERS | {"Retry-After": "0"})
        return StreamingResponse(self._stream(body, question), media_type="text/event-stream", headers=HEADERS)

    def _die(self) -> None:
        """As after kill -9: nobody listens and every connection breaks."""
        assert self.server is not None
        self.socket.unlink()
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        self.server.should_exit = True

    async def _stream(self, body: dict[str, Any], question: str) -> AsyncIterator[str]:
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            await asyncio.sleep(self.delay_s)
            receipt = self._receipt(body, question)
            yield _event({"choices": [{"delta": {"role": "assistant"}}], "semcache": {"cache": receipt["cache"]}})
            for word in receipt["answer"].split(" "):
                yield _event({"choices": [{"delta": {"content": word + " "}}]})
            yield _event({"choices": [], "usage": receipt["usage"], "semcache": receipt})
            yield "data: [DONE]\n\n"
        finally:
            self.num_running -= 1

    def _receipt(self, body: dict[str, Any], question: str) -> dict[str, Any]:
        key = (body.get("cache_namespace"), body.get("user"), json.dumps(body["messages"]))
        is_off = body.get("cache") == "off"
        outcome = "semantic" if question in self.donors else "miss"
        if is_off or key in self.seen:
            outcome = "miss" if is_off else "exact"
        if not is_off:
            self.seen.add(key)
        own = self.answers.get(question, f"answer to {question}")
        answer = self.donors[question] if outcome == "semantic" else own
        cached = 10 if outcome in ("exact", "semantic") else 0
        return receipt(outcome, answer, question, cached_tokens=cached, strategy=body.get("cache_strategy", "per_user"))


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def receipt(
    outcome: str, answer: str, question: str = "q", *, cached_tokens: int = 0, strategy: str = "per_user"
) -> dict[str, Any]:
    return {
        "schema": ASK_SCHEMA, "id": "req_1", "created": "2026-11-20T00:00:00Z", "model": "mini", "user": "os:0",
        "prompt": question, "answer": answer, "finish_reason": "stop",
        "cache": {
            "outcome": outcome, "reason": "empty", "strategy": strategy, "scope": None, "score": None, "entry": None,
            "matched_prompt": None, "entry_age_s": None, "prefix_tokens": 0, "draft_tokens": 0, "draft_accepted": 0,
            "stored": True,
        },
        "usage": {
            "prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        },
        "timing_ms": {"ttft": 1.0, "total": 2.0},
    }  # fmt: skip


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the tests' own signals stay the tests' own


@pytest.fixture
async def daemon() -> AsyncIterator[FakeDaemon]:
    """A running fake daemon; its folder has a short path, because a socket path must fit 103 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="rp-"))
    fake = FakeDaemon(folder / "api.sock")
    config = uvicorn.Config(
        fake.app(), uds=str(fake.socket), lifespan="off", ws="none", log_level="critical", timeout_graceful_shutdown=1
    )
    fake.server = _Server(config)
    task = asyncio.create_task(fake.server.serve())
    while not fake.server.started:
        await asyncio.sleep(0.005)
    yield fake
    fake.server.should_exit = True
    await task
    shutil.rmtree(folder)


@pytest.fixture
def trivia(tmp_path: Path) -> Dataset:
    rows = [Row(f"question {n}", f"answer to question {n}", None, None, None, n) for n in range(1, 7)]
    return Dataset(tmp_path / "six.json", "0" * 64, rows)


Start = Callable[..., Any]


@pytest.fixture
def run_replay(daemon: FakeDaemon, trivia: Dataset, tmp_path: Path) -> Start:
    """`await run_replay(users=2, …)`: one replay of six rows against the fake daemon, saved under tmp_path/run."""

    async def start(dataset: Dataset | None = None, **given: Any) -> Result:
        options = ReplayOptions(dataset="six.json", **given)
        async with Client(socket=daemon.socket) as client:
            sender = DaemonSender(client, options)
            server = await sender.describe()
            with contextlib.closing(begin(options, dataset or trivia, tmp_path / "run", server)) as run_dir:
                progress = Progress(quiet=True)
                return await Replay(options, dataset or trivia, sender, server, run_dir, progress).run()

    return start


@pytest.fixture
def make_record() -> Callable[..., RequestRecord]:
    """A finished request with sensible values for everything that a test does not care about."""

    def make(
        outcome: str | None = "miss",
        *,
        index: int = 0,
        ttft_ms: float | None = 10,
        total_ms: float = 20,
        phase: str = "run",
        at_s: float = 0.0,
        answer: str = "x",
        **more: Any,
    ) -> RequestRecord:
        note = receipt(outcome or "miss", answer)
        reply = Reply(answer, outcome, ttft_ms, total_ms, cache=note["cache"], usage=note["usage"]) if outcome else None
        values: dict[str, Any] = {
            "phase": phase, "strategy": None, "concurrency": 1, "index": index, "round": 1, "row": index + 1,
            "prompt": index + 1, "user": None, "group": None, "question": "q", "expected": [], "started_s": at_s,
            "late_ms": None, "attempts": 1, "reply": reply,
            "error": None if outcome else {"code": "engine_error", "message": "broken"},
        }  # fmt: skip
        return RequestRecord(**(values | more))

    return make
