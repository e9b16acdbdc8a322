"""Replay against a server that is OpenAI-compatible and nothing more, over a real TCP port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from semcache import errors
from semcache.replay.options import ReplayOptions
from semcache.replay.progress import Progress
from semcache.replay.replay import Replay, begin
from semcache.replay.target import TargetSender


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Plain:
    """Streams "four \u2028 words" and, without being asked to, nothing about a cache."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []

    def app(self) -> Starlette:
        models = JSONResponse({"object": "list", "data": [{"id": "first"}, {"id": "second"}]})
        return Starlette(routes=[
            Route("/v1/models", lambda _request: models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ])  # fmt: skip

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(request.headers)
        question = body["messages"][-1]["content"]
        if question == "question 2":
            return JSONResponse({"error": {"message": "bad key"}}, status_code=401)
        if question == "question 3":
            return StreamingResponse(iter(['data: {"error": {"message": "fell over"}}\n\n']))
        chunks = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"delta": {"content": "answer to \u2028"}}]},
            {"choices": [{"delta": {"content": question}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
        ]
        lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
        return StreamingResponse(iter([": ping\n\n", *lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


@pytest.fixture
async def plain() -> AsyncIterator[tuple[Plain, str]]:
    server_side = Plain()
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(uvicorn.Config(server_side.app(), lifespan="off", ws="none", log_level="critical"))
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    yield server_side, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await task
    listener.close()


async def test_outcome_is_unknown_and_failures_are_recorded(plain, trivia, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    server, url = plain
    options = ReplayOptions("six.json", target=f"{url}/v1", max_tokens=9)
    async with TargetSender(options) as sender:
        told = await sender.describe()
        with contextlib.closing(begin(options, trivia, tmp_path / "run", told)) as run_dir:
            result = await Replay(options, trivia, sender, told, run_dir, Progress(quiet=True)).run()
    (summary,) = result.summaries
    assert (summary["requests"], summary["errors"]) == (6, 2)
    assert summary["outcomes"]["unknown"]["n"] == 4
    assert summary["overall"]["correct"] == 1.0
    assert summary["tokens"] == {"prompt": 20, "cached": None, "completion": 8, "drafted": None, "accepted": None}
    assert summary["settings"]["namespace"] is None
    codes = {record.row: record.error["code"] for record in run_dir.records if record.error}
    assert codes == {2: "unauthorized", 3: "internal_error"}
    assert server.headers[0]["authorization"] == "Bearer sk-test"
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("first", 9, True)
    assert not {"cache", "cache_strategy", "cache_namespace"} & body.keys()


async def test_nobody_there_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    async with TargetSender(ReplayOptions("x", target=f"http://127.0.0.1:{free}")) as sender:
        assert not await sender.is_reachable()
        with pytest.raises(errors.DaemonUnreachableError, match="no server answers"):
            await sender.describe()
