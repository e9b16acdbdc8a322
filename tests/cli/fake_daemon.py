"""A daemon of cardboard: the agreed HTTP surface over a real Unix socket, answering what a test puts into it.

In a thread of the test, or (`python fake_daemon.py`) as a process that reports phases like the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket as sockets
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from semcache import __version__
from semcache.wire.entries import EntryDetail
from semcache.wire.protocol import PROTOCOL
from semcache.wire.receipts import AskReceipt, CandidateRow
from semcache.wire.status import ModelStatus, SemanticStatus, Status, UserStats
from semcache.wire.trust import AuditReport, Explanation, FeedbackResult, ScopeEvidence, TuneReport

RECEIPT: AskReceipt = {
    "schema": "semcache.ask/1",
    "id": "req_1",
    "created": "2026-11-20T11:07:31+00:00",
    "model": "mini",
    "user": "os:1000",
    "prompt": "capital city of australia?",
    "answer": "Canberra.",
    "finish_reason": "stop",
    "cache": {
        "outcome": "semantic",
        "reason": "match",
        "strategy": "per_user",
        "scope": "user",
        "score": 0.962,
        "entry": "e_1",
        "matched_prompt": "What is the capital of Australia?",
        "entry_age_s": 131.0,
        "prefix_tokens": 0,
        "draft_tokens": 0,
        "draft_accepted": 0,
        "passes": 0,
        "stored": False,
    },
    "usage": {
        "prompt_tokens": 21,
        "completion_tokens": 6,
        "total_tokens": 27,
        "prompt_tokens_details": {"cached_tokens": 18},
    },
    "timing_ms": {
        "queue": 0.2,
        "embed": 2.1,
        "lookup": 0.4,
        "restore": None,
        "prefill": None,
        "ttft": 11.3,
        "second_token": None,
        "decode": None,
        "total": 149.6,
    },
}

MODEL: ModelStatus = {
    "name": "mini",
    "state": "ready",
    "stage": None,
    "progress": None,
    "error": None,
    "architecture": "LlamaForCausalLM",
    "parameters": 1_000_000,
    "device": "cpu",
    "dtype": "float32",
    "context_tokens": 2048,
    "slots": 8,
    "fingerprint": "abc",
    "weights_bytes": 4_000_000,
    "kv_bytes_per_token": 1024,
    "unloads_in_s": 581.0,
}

ENTRY: EntryDetail = {
    "id": "e_1",
    "user": "os:1000/alice",
    "scope": "user",
    "model": "mini",
    "prompt": "What is\nthe capital?\x1b[31m",
    "answer": "Canberra.",
    "created": "2026-11-20T11:07:31+00:00",
    "last_used": "2026-11-20T11:07:31+00:00",
    "hits": 3,
    "prompt_tokens": 21,
    "completion_tokens": 6,
    "size_bytes": 12_345,
    "pinned": False,
    "messages": [{"role": "user", "content": "What is\nthe capital?"}],
    "sampling": {"temperature": 0.0, "seed": None},
    "finish_reason": "stop",
    "strategy": "per_user",
    "fingerprint": "abc",
    "blocks": 2,
    "kv_bytes": 40_000,
    "embedded": True,
    "expires": None,
    "aliases": ["capital city of australia?"],
    "evidence": {"same": 3, "other": 1, "mean_regret": 0.0421},
}

USER_STATS: UserStats = {
    "user": "os:1000",
    "requests": 10,
    "errors": 0,
    "outcomes": {"exact": 2, "semantic": 3, "draft": 0, "prefix": 1, "miss": 4},
    "answer_hits": 5,
    "compute_hits": 6,
    "answer_share": 0.5,
    "compute_share": 0.6,
    "prompt_tokens": 12_345,
    "cached_tokens": 6_000,
    "completion_tokens": 900,
    "drafted_tokens": 0,
    "accepted_tokens": 0,
    "saved_ms": 61_000.0,
    "stored_bytes": {"ram": 500_000, "disk": 2_000_000},
    "quota_bytes": None,
    "wrong_hits": {"audits": 0, "wrong": 0, "rate": None, "ci95": None},
}


SEMANTIC: SemanticStatus = {
    "policy": "verified",
    "threshold": 0.95,
    "max_error": 0.01,
    "max_hit_error": 0.02,
    "audit_rate": 0.05,
    "equivalence": "text",
    "embedder": "x",
    "state": "ready",
    "reason": None,
    "audits": 38,
    "wrong": 0,
    "rate": 0.0,
    "ci95": (0.0, 0.092),
    "due_audits": 3,
    "suspended": [],
    "drafts": True,
}

SCOPE: ScopeEvidence = {
    "scope": "user",
    "user": "os:1000",
    "state": "learning",
    "requests": 310,
    "labels": 41,
    "served": 22,
    "audits": 22,
    "wrong": 1,
    "rate": 0.0455,
    "ci95": (0.008, 0.218),
    "threshold": None,
    "words": "too little is known yet",
}

CANDIDATE: CandidateRow = {
    "entry": "e_1",
    "scope": "user",
    "prompt": "What is\nthe capital of Australia?\x1b[31m",
    "answer": "Canberra.",
    "score": 0.962,
    "features": {"distance": -3.2, "number": 0.0, "entity": 1.0, "question": 1.0},
    "p_correct": 0.991,
    "verdict": "served",
    "reason": "similar",
}

EXPLANATION: Explanation = {
    "schema": "semcache.explain/1",
    "prompt": "capital city of australia?",
    "user": "os:1000",
    "strategy": "per_user",
    "policy": "verified",
    "outcome": "semantic",
    "reason": "similar",
    "candidates": [
        CANDIDATE,
        {
            **CANDIDATE,
            "entry": "e_2",
            "score": 0.874,
            "p_correct": None,
            "verdict": "refused",
            "reason": "policy:number",
        },
    ],
    "donor": "e_1",
    "prefix_tokens": 64,
    "max_error": 0.01,
    "max_hit_error": 0.02,
    "threshold": 0.95,
    "evidence": [SCOPE],
}

AUDITS: AuditReport = {
    "schema": "semcache.audit/1",
    "policy": "verified",
    "equivalence": "text",
    "audit_rate": 0.05,
    "due": 3,
    "scopes": [SCOPE],
    "recent": [
        {
            "request": "req_1",
            "at": "2026-11-20T11:07:31+00:00",
            "user": "os:1000",
            "entry": "e_1",
            "prompt": "capital city of australia?",
            "matched_prompt": "What is the capital of Australia?",
            "score": 0.962,
            "p_correct": 0.991,
            "served": True,
            "same": True,
            "source": "audit",
        }
    ],
}

FEEDBACK: FeedbackResult = {
    "request": "req_1",
    "entry": "e_1",
    "verdict": "wrong",
    "removed": False,
    "negative_pair": True,
}

TUNE: TuneReport = {
    "schema": "semcache.tune/1",
    "current": {"max_error": 0.01, "max_hit_error": 0.02},
    "rows": [
        {
            "max_error": budget,
            "max_hit_error": 0.02,
            "requests": 400,
            "labelled": 90,
            "served": 22 * number,
            "share": 0.055 * number,
            "wrong": number,
            "rate": 0.0455,
            "ci95": (0.008, 0.218),
            "words": "",
        }
        for number, budget in enumerate((0.01, 0.02), start=1)
    ],
}


def status(socket: Path, pid: int) -> Status:
    return {
        "schema": "semcache.status/1",
        "version": __version__,
        "protocol": PROTOCOL,
        "pid": pid,
        "state": "ready",
        "uptime_s": 61.0,
        "autostarted": True,
        "socket": str(socket),
        "url": None,
        "data_dir": "/data",
        "model": MODEL,
        "queue": {"running": 1, "waiting": 0},
        "entries": 5,
        "blocks": 9,
        "tiers": {"ram": {"used_bytes": 1, "limit_bytes": 2, "items": 1}},
        "outcomes": {"exact": 1, "miss": 3},
        "latency": {},
        "semantic": SEMANTIC,
        "counters": {},
        "warnings": [],
    }


class FakeDaemon:
    """`replies[path]` is what a path answers: JSON, a (status, JSON) pair, or a list of those, one per request."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.protocol: str | None = str(PROTOCOL)
        self.seen: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.disconnected = threading.Event()
        self.stream: list[Any] = [
            {"choices": [{"delta": {"role": "assistant"}}], "semcache": {"cache": RECEIPT["cache"]}},
            {"choices": [{"delta": {"content": "Can"}}]},
            {"choices": [{"delta": {"content": "berra.\u2028"}}]},
            {"choices": [], "usage": RECEIPT["usage"], "semcache": RECEIPT},
            "[DONE]",
        ]
        self.hang_after: int | None = None
        self.replies: dict[str, Any] = {
            "/ready": {"status": "ready"},
            "/v1/chat/completions": {"choices": [], "semcache": RECEIPT},
            "/v1/semcache/status": status(socket, os.getpid()),
            "/v1/semcache/stats": {"schema": "semcache.stats/1", "total": USER_STATS, "users": [USER_STATS]},
            "/v1/semcache/requests": {"requests": [RECEIPT]},
            "/v1/semcache/entries": {"entries": [ENTRY]},
            "/v1/semcache/entries/e_1": ENTRY,
            "/v1/semcache/explain": EXPLANATION,
            "/v1/semcache/explain/req_1": EXPLANATION,
            "/v1/semcache/feedback": FEEDBACK,
            "/v1/semcache/audit": AUDITS,
            "/v1/semcache/tune": TUNE,
            "/v1/semcache/entries/e_1/pin": {"id": "e_1", "pinned": True, "blocks": 2, "bytes": 52_345},
            "/v1/semcache/clear": {"entries": 5, "blocks": 9, "pinned": 1},
            "/v1/semcache/check": {"ok": True, "fixed": False, "entries": 5, "blocks": 9, "bytes": 77, "problems": []},
            "/v1/semcache/models": {"models": [MODEL]},
            "/v1/semcache/models/load": MODEL,
            "/v1/semcache/models/unload": {**MODEL, "state": "unloaded"},
            "/v1/semcache/events": {},
            "/v1/semcache/shutdown": {"status": "draining"},
        }
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST", "PUT", "DELETE"])])

    def fails(self, path: str, status_code: int, code: str, message: str = "no") -> None:
        self.replies[path] = (status_code, error(code, message))

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        asked = json.loads(body) if body else dict(request.query_params)
        self.seen.append((request.method, request.url.path, asked))
        self.headers.append(dict(request.headers))
        reply = self.replies.get(request.url.path, (404, error("not_found", f"nothing at {request.url.path}")))
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        code, content = reply if isinstance(reply, tuple) else (200, reply)
        headers = {"X-Semcache-Version": __version__} | (
            {"X-Semcache-Protocol": self.protocol} if self.protocol else {}
        )
        if code == 200 and request.url.path == "/v1/semcache/events":
            return StreamingResponse(self._events(), media_type="text/event-stream", headers=headers)
        if code == 200 and isinstance(asked, dict) and asked.get("stream") is True:
            return StreamingResponse(self._chunks(), media_type="text/event-stream", headers=headers)
        return JSONResponse(content, status_code=code, headers=headers)

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            for index, chunk in enumerate(self.stream):
                if index == self.hang_after:
                    await asyncio.sleep(60)
                data = chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False)
                yield f": ping\n\ndata: {data}\n\n".encode()
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.disconnected.set()
            raise

    async def _events(self) -> AsyncIterator[bytes]:
        yield b": hello\n\nevent: request\ndata: " + json.dumps({**RECEIPT, "state": "queued"}).encode() + b"\n\n"
        yield b"event: model\r\ndata: " + json.dumps(MODEL).encode() + b"\r\n\r\n"

    def listen(self) -> sockets.socket:
        self.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        listener.bind(str(self.socket))
        listener.listen(64)
        return listener

    def server(self) -> uvicorn.Server:
        config = uvicorn.Config(self.app, log_config=None, ws="none", lifespan="off", timeout_graceful_shutdown=1)
        return uvicorn.Server(config)


class Running:
    """The daemon in a thread."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._listener = daemon.listen()
        self._server = daemon.server()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


def error(code: str, message: str = "no") -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": "p", "code": code}}


def _process() -> None:
    """`--ready-fd N` and what FAKE_DAEMON says: ready, error, crash, silent."""
    import argparse
    import fcntl
    import sys
    import time

    from semcache.paths import Paths

    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--autostarted", action="store_true")
    parser.add_argument("--socket", type=Path)
    pipe = os.fdopen(parser.parse_args().ready_fd, "w", buffering=1)
    mode = os.environ["FAKE_DAEMON"]
    paths = Paths.resolve()
    with open(paths.runtime_dir / "started", "a") as started:
        started.write("x")
    sys.stderr.write("first log line\nthe last log line\n")
    sys.stderr.flush()
    if mode == "crash":
        sys.exit(9)
    if mode == "error":
        pipe.write('{"phase":"error","code":"model_unavailable","message":"no weights in /x"}\n')
        sys.exit(8)
    lock = paths.lock_file.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    if mode == "silent":
        pipe.close()
        time.sleep(60)
    daemon = FakeDaemon(paths.socket)
    listener, server = daemon.listen(), daemon.server()
    pipe.write('{"phase":"listening"}\n{"phase":"loading","stage":"weights","progress":0.5}\n')
    if mode == "late-error":
        pipe.write('{"phase":"error","code":"model_unavailable","message":"no weights in /x"}\n')
    else:
        pipe.write('{"phase":"ready"}\n')
    pipe.close()
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    _process()
