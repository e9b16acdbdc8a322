"""Jobs to any OpenAI-compatible server, with plain streaming chat completions: the outcome is `unknown`.

`client.py` speaks only to semcache (it checks our protocol header), so this one file of replay uses httpx itself.
The bearer token is OPENAI_API_KEY, as in the OpenAI SDK.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from semcache import errors
from semcache.replay.options import ReplayOptions
from semcache.replay.plan import Job
from semcache.replay.record import Reply
from semcache.replay.sender import CacheUse, base_body, elapsed_ms

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 600.0
_CODES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "queue_full", 503: "unavailable"}


class TargetSender:
    """An open connection to one server; use it as an async context manager."""

    def __init__(self, options: ReplayOptions) -> None:
        import httpx

        assert options.target is not None
        self._options = options
        self._where = options.target.rstrip("/").removesuffix("/v1")
        self._model: str | None = options.model
        key = os.environ.get("OPENAI_API_KEY")
        self._http = httpx.AsyncClient(
            base_url=self._where,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(TIMEOUT_S, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def send(self, job: Job, use: CacheUse) -> Reply:
        del use  # there is no cache of ours
        body = base_body(job, self._options) | {"stream": True, "stream_options": {"include_usage": True}}
        body["model"] = await self._served_model()
        parts: list[str] = []
        usage: dict[str, Any] | None = None
        finish_reason: str | None = None
        first: float | None = None
        started = time.perf_counter()
        async for chunk in self._chunks(body):
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                finish_reason = choice.get("finish_reason") or finish_reason
                text = (choice.get("delta") or {}).get("content")
                if text:
                    first = first or time.perf_counter()
                    parts.append(text)
        return Reply(
            answer="".join(parts),
            outcome="unknown",
            ttft_ms=None if first is None else elapsed_ms(started, first),
            total_ms=elapsed_ms(started, time.perf_counter()),
            finish_reason=finish_reason,
            usage=usage,
        )

    async def is_reachable(self) -> bool:
        try:
            await self._models()
        except errors.DaemonUnreachableError:
            return False
        except errors.SemcacheError:
            pass  # it answered
        return True

    async def describe(self) -> dict[str, Any]:
        return {"model": await self._served_model()}

    async def clear(self, namespace: str) -> None:
        raise errors.UsageError(f"{self._where} has no namespace {namespace}")

    async def _served_model(self) -> str:
        """`--model`, or the first model that the server lists."""
        if self._model is None:
            models = await self._models()
            if not models:
                raise errors.UsageError(f"{self._where} lists no model; name one with --model")
            self._model = models[0]
        return self._model

    async def _models(self) -> list[str]:
        with self._translated():
            response = await self._http.get("/v1/models", timeout=30.0)
        self._check(response)
        try:
            return [str(item["id"]) for item in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.ProtocolError(f"{self._where}/v1/models is not an OpenAI model list") from error

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        with self._translated():
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    await response.aread()
                self._check(response)
                rest = b""
                async for piece in response.aiter_bytes():
                    # Not aiter_lines: it also splits at U+2028, which JSON may carry inside a string.
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data:") and line[5:].strip() not in (b"", b"[DONE]"):
                            yield self._chunk(line[5:])

    def _chunk(self, data: bytes) -> dict[str, Any]:
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise errors.ProtocolError(f"{self._where} streamed something that is not JSON") from error
        if not isinstance(chunk, dict):
            raise errors.ProtocolError(f"{self._where} streamed {data[:80]!r}, not an object")
        if "error" in chunk:
            raise errors.SemcacheError(f"{self._where}: {_message(chunk)}")
        return chunk

    def _check(self, response: httpx.Response) -> None:
        if not response.is_error:
            return
        try:
            detail = _message(response.json())
        except ValueError:
            detail = " ".join(response.text.split())[:200]
        retry_after = response.headers.get("Retry-After", "")
        raise errors.from_code(
            _CODES.get(response.status_code, errors.SemcacheError.code),
            f"{self._where} answered {response.status_code}: {detail or response.reason_phrase}",
            retry_after_s=float(retry_after) if retry_after.isdigit() else None,
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """httpx exceptions as ours."""
        import httpx

        try:
            yield
        except httpx.InvalidURL as error:
            raise errors.UsageError(f"--target {self._where!r}: {error}", param="target") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise errors.DaemonUnreachableError(f"no server answers at {self._where} ({error})") from error
        except httpx.TimeoutException as error:
            raise errors.RequestTimeoutError(f"{self._where} sent nothing for {TIMEOUT_S:g} s") from error
        except httpx.HTTPError as error:
            detail = str(error) or type(error).__name__
            raise errors.DaemonUnreachableError(f"the connection to {self._where} broke: {detail}") from error


def _message(body: Any) -> str:
    """The text of an OpenAI error object, or of whatever stands in its place."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]
