"""The client against a real socket: shapes in, shapes out, and errors as the classes that were raised."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from semcache import errors
from semcache.client import Client
from tests.cli.fake_daemon import (
    AUDITS,
    ENTRY,
    EXPLANATION,
    FEEDBACK,
    MODEL,
    RECEIPT,
    TUNE,
    FakeDaemon,
    Running,
    error,
)

BODY = {"messages": [{"role": "user", "content": "hi"}]}


def as_json(value: object) -> Any:
    """What it is behind the wire: tuples are lists there."""
    return json.loads(json.dumps(value))


@pytest.fixture
def daemon(tmp_path: Path) -> AsyncIterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s")
    running = Running(fake)
    yield fake
    running.stop()


@pytest.fixture
async def client(daemon: FakeDaemon) -> AsyncIterator[Client]:
    async with Client(socket=daemon.socket, timeout_s=20) as opened:
        yield opened


async def test_ask(client: Client, daemon: FakeDaemon) -> None:
    assert await client.ask(BODY, cache_control="no-store") == RECEIPT
    assert daemon.headers[0]["cache-control"] == "no-store"
    assert daemon.seen[0][2] == {**BODY, "stream": False}


async def test_a_stream_is_receipt_text_receipt(client: Client) -> None:
    parts = [part async for part in client.ask_stream(BODY)]
    assert parts == [RECEIPT["cache"], "Can", "berra.\u2028", RECEIPT]


async def test_errors_in_and_before_a_stream(client: Client, daemon: FakeDaemon) -> None:
    daemon.stream[2:] = [error("timeout", "too slow")]
    with pytest.raises(errors.RequestTimeoutError, match="too slow"):
        [part async for part in client.ask_stream(BODY)]
    daemon.stream[2:] = ["{not json"]
    with pytest.raises(errors.ProtocolError, match="not JSON"):
        [part async for part in client.ask_stream(BODY)]
    daemon.fails("/v1/chat/completions", 429, "queue_full", "come back")
    with pytest.raises(errors.BusyError, match="come back"):
        [part async for part in client.ask_stream(BODY)]


async def test_closing_a_stream_disconnects(client: Client, daemon: FakeDaemon) -> None:
    daemon.hang_after = 2
    stream = client.ask_stream(BODY)
    await anext(stream)
    await stream.aclose()
    assert daemon.disconnected.wait(10)


async def test_every_read(client: Client, daemon: FakeDaemon) -> None:
    await client.ready(0.5)
    assert (await client.status())["pid"] > 0
    assert (await client.stats())["schema"] == "semcache.stats/1"
    assert await client.requests(limit=3) == [RECEIPT]
    assert await client.entries(limit=3, sort="hits", match="x") == [ENTRY]
    assert await client.entry("e_1") == ENTRY
    assert await client.models() == [MODEL]
    queries = {path: query for _method, path, query in daemon.seen}
    assert queries["/ready"] == {"wait_s": "0.5"}
    assert queries["/v1/semcache/requests"] == {"limit": "3"}
    assert queries["/v1/semcache/entries"] == {"limit": "3", "sort": "hits", "match": "x"}


async def test_every_write(client: Client, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/semcache/entries/e/2%3F"] = {"removed": 1}  # the cardboard daemon decodes just the slash
    assert await client.delete_entry("e/2?") == 1
    assert (await client.pin("e_1"))["pinned"]
    assert (await client.pin("e_1", pinned=False))["id"] == "e_1"
    assert [method for method, path, _ in daemon.seen if path.endswith("/pin")] == ["PUT", "DELETE"]
    assert await client.clear(user="bob") == {"entries": 5, "blocks": 9, "pinned": 1}
    await client.clear(user="bob", keep_pinned=False)
    assert daemon.seen[-1][2] == {"user": "bob", "all": True}
    await client.clear(user="bob")
    assert (await client.check(fix=True))["ok"]
    assert await client.load_model() == MODEL
    assert (await client.unload_model())["state"] == "unloaded"
    await client.shutdown(3)
    bodies = {path: body for _method, path, body in daemon.seen}
    assert bodies["/v1/semcache/clear"] == {"user": "bob"}
    assert bodies["/v1/semcache/check"] == {"fix": True}
    assert bodies["/v1/semcache/shutdown"] == {"timeout_s": 3}


async def test_trust(client: Client, daemon: FakeDaemon) -> None:
    found = {**ENTRY, "score": 0.9}
    daemon.replies["/v1/semcache/entries"] = {"entries": [found]}
    assert await client.find("capital", user="bob", limit=3) == [found]
    assert await client.explain({"prompt": "hi"}) == as_json(EXPLANATION)
    assert await client.explained("req_1") == as_json(EXPLANATION)
    assert await client.feedback("req_1", "wrong") == FEEDBACK
    assert await client.audit() == as_json(AUDITS)
    assert await client.tune([0.01, 0.02], [0.05]) == as_json(TUNE)
    sent = {(method, path): body for method, path, body in daemon.seen}
    assert sent["GET", "/v1/semcache/entries"] == {"near": "capital", "user": "bob", "limit": "3"}
    assert sent["POST", "/v1/semcache/explain"] == {"prompt": "hi"}
    assert ("GET", "/v1/semcache/explain/req_1") in sent
    assert sent["POST", "/v1/semcache/feedback"] == {"id": "req_1", "verdict": "wrong"}
    assert sent["POST", "/v1/semcache/tune"] == {"max_error": [0.01, 0.02], "max_hit_error": [0.05]}


async def test_events(client: Client) -> None:
    assert [event async for event in client.events()] == [("request", {**RECEIPT, "state": "queued"}), ("model", MODEL)]


async def test_an_error_body_keeps_its_parts(client: Client, daemon: FakeDaemon) -> None:
    daemon.fails("/ready", 503, "unavailable", "loading weights 63 %")
    with pytest.raises(errors.UnavailableError) as caught:
        await client.ready(0)
    assert (caught.value.message, caught.value.param) == ("loading weights 63 %", "p")


async def test_an_error_of_somebody_else_is_still_an_error(client: Client, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/semcache/status"] = (404, {"detail": "Not Found"})
    with pytest.raises(errors.NotFoundError, match="404"):
        await client.status()


async def test_protocol(client: Client, daemon: FakeDaemon) -> None:
    daemon.protocol = "2"
    with pytest.raises(errors.ProtocolError, match="daemon restart"):
        await client.status()
    daemon.protocol = None
    with pytest.raises(errors.ProtocolError, match="not a semcache daemon"):
        [part async for part in client.ask_stream(BODY)]


async def test_silence_is_a_timeout(daemon: FakeDaemon) -> None:
    daemon.hang_after = 2
    async with Client(socket=daemon.socket, timeout_s=0.3) as client:
        with pytest.raises(errors.RequestTimeoutError):
            [part async for part in client.ask_stream(BODY)]


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/v1"])
async def test_nobody_there(tmp_path: Path, url: str | None) -> None:
    async with Client(socket=None if url else tmp_path / "s", url=url) as client:
        with pytest.raises(errors.DaemonUnreachableError, match="daemon start"):
            await client.status()


async def test_a_url_needs_a_scheme() -> None:
    with pytest.raises(errors.UsageError):
        Client(url="localhost:8642")


async def test_the_token_travels(daemon: FakeDaemon) -> None:
    async with Client(socket=daemon.socket, token="t") as client:
        await client.status()
    assert daemon.headers[0]["authorization"] == "Bearer t"
