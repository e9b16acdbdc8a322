"""The one HTTP client of semcache: wire shapes in and out, error bodies back to the classes that were raised.

Front ends (CLI, TUI, replay) reach the daemon only through this file. Knows nothing about terminals, settings or
how a daemon is started. `httpx` is imported on first use, because `semcache --help` must not pay for it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote

from semcache import errors, wire
from semcache.paths import Paths, check_socket_path

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 10.0
# Comment pings come every 15 s; a stream that is silent for longer than this has lost its daemon.
EVENTS_SILENCE_S = 120.0
# A long poll must outlive the wait that the daemon was asked for.
LONG_POLL_MARGIN_S = 60.0

_BY_STATUS = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "queue_full", 503: "unavailable"}


class Client:
    """An open connection to one daemon, over its Unix socket or a URL; use it as an async context manager."""

    def __init__(
        self, *, socket: Path | None = None, url: str | None = None, token: str | None = None, timeout_s: float = 600
    ) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.timeout_s = timeout_s
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), pool=None)
        # As many connections as the caller has requests in flight: the daemon's queue is the limit, not ours.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        if url is None:
            path = socket or Paths.resolve().socket
            check_socket_path(path)
            self.where = f"unix:{path}"
            # verify=False: no TLS on a Unix socket, and loading the CA bundle costs 20 ms.
            transport = httpx.AsyncHTTPTransport(uds=str(path), verify=False, limits=limits)
            self._http = httpx.AsyncClient(
                transport=transport, base_url="http://semcache", headers=headers, timeout=timeout, trust_env=False
            )
        else:
            self.where = _checked_url(url)
            secure = self.where.startswith("https:")
            self._http = httpx.AsyncClient(
                base_url=self.where, headers=headers, timeout=timeout, limits=limits, verify=secure, trust_env=secure
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    # Asking

    async def ask(self, body: Mapping[str, Any], *, cache_control: str | None = None) -> wire.AskReceipt:
        """One answer, whole."""
        headers = {"Cache-Control": cache_control} if cache_control else {}
        answer = await self._json("POST", "/v1/chat/completions", body={**body, "stream": False}, headers=headers)
        if "semcache" not in answer:
            raise errors.ProtocolError(f"{self.where} answered without a receipt; is it a semcache daemon?")
        return cast("wire.AskReceipt", answer["semcache"])

    async def ask_stream(
        self, body: Mapping[str, Any], *, cache_control: str | None = None
    ) -> AsyncGenerator[wire.CacheReceipt | str | wire.AskReceipt]:
        """What the cache did, then the text as it is made, then the whole receipt.

        Close it (`contextlib.aclosing`) to cancel: the daemon stops computing when the connection goes away.
        """
        headers = {"Cache-Control": cache_control} if cache_control else {}
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        receipt: wire.AskReceipt | None = None
        async with self._stream("POST", "/v1/chat/completions", body=body, headers=headers) as response:
            async for _event, data in _sse(response):
                if data == "[DONE]":
                    break
                chunk = self._chunk(data)
                note = chunk.get("semcache") or {}
                if "schema" in note:
                    receipt = cast("wire.AskReceipt", note)
                elif "cache" in note:
                    yield cast("wire.CacheReceipt", note["cache"])
                for choice in chunk.get("choices", ()):
                    text = (choice.get("delta") or {}).get("content")
                    if text:
                        yield text
        if receipt is None:
            raise errors.DaemonUnreachableError(f"the daemon at {self.where} ended the answer without a receipt")
        yield receipt

    # Looking

    async def ready(self, wait_s: float) -> None:
        """Return when the model is loaded; raises UnavailableError when it is not within `wait_s`."""
        await self._json("GET", "/ready", params={"wait_s": f"{wait_s:g}"}, timeout_s=wait_s + LONG_POLL_MARGIN_S)

    async def status(self) -> wire.Status:
        return cast("wire.Status", await self._json("GET", "/v1/semcache/status"))

    async def stats(self) -> wire.Stats:
        return cast("wire.Stats", await self._json("GET", "/v1/semcache/stats"))

    async def requests(self, limit: int = 50) -> list[wire.AskReceipt]:
        """Newest first, running ones included."""
        answer = await self._json("GET", "/v1/semcache/requests", params={"limit": limit})
        return cast("list[wire.AskReceipt]", answer["requests"])

    async def events(self) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """`("request", AskReceipt)`, `("model", ModelStatus)` and so on, until the daemon drains."""
        async with self._stream("GET", "/v1/semcache/events", read_timeout_s=EVENTS_SILENCE_S) as response:
            async for event, data in _sse(response):
                yield event, self._chunk(data)

    # Entries

    async def entries(
        self, limit: int = 50, sort: str = "used", match: str | None = None, user: str | None = None
    ) -> list[wire.EntrySummary]:
        params: dict[str, str | int] = {"limit": limit, "sort": sort}
        filters = {"match": match, "user": user}
        params |= {name: text for name, text in filters.items() if text is not None}
        answer = await self._json("GET", "/v1/semcache/entries", params=params)
        return cast("list[wire.EntrySummary]", answer["entries"])

    async def entry(self, entry_id: str) -> wire.EntryDetail:
        return cast("wire.EntryDetail", await self._json("GET", f"/v1/semcache/entries/{quote(entry_id, safe='')}"))

    async def find(self, text: str, *, user: str | None = None, limit: int = 10) -> list[wire.FoundEntry]:
        """The stored prompts nearest in meaning to `text`, nearest first."""
        params: dict[str, str | int] = {"near": text, "limit": limit}
        if user is not None:
            params["user"] = user
        return cast(
            "list[wire.FoundEntry]", (await self._json("GET", "/v1/semcache/entries", params=params))["entries"]
        )

    async def delete_entry(self, entry_id: str) -> int:
        """How many entries went: 1."""
        answer = await self._json("DELETE", f"/v1/semcache/entries/{quote(entry_id, safe='')}")
        return int(answer["removed"])

    async def pin(self, entry_id: str, *, pinned: bool = True) -> wire.PinResult:
        """Keep an entry and its prompt's KV until it is unpinned; `pinned=False` unpins."""
        path = f"/v1/semcache/entries/{quote(entry_id, safe='')}/pin"
        return cast("wire.PinResult", await self._json("PUT" if pinned else "DELETE", path))

    async def clear(
        self, *, namespace: str | None = None, user: str | None = None, keep_pinned: bool = True
    ) -> wire.Cleared:
        """Remove what the caller owns, or the part named."""
        body = {"namespace": namespace, "user": user, "all": None if keep_pinned else True}
        named = {name: value for name, value in body.items() if value is not None}
        return cast("wire.Cleared", await self._json("POST", "/v1/semcache/clear", body=named))

    async def check(self, fix: bool = False) -> wire.CheckReport:
        return cast("wire.CheckReport", await self._json("POST", "/v1/semcache/check", body={"fix": fix}))

    # Trust

    async def explain(self, body: Mapping[str, Any]) -> wire.Explanation:
        """What would be done with a prompt now; computes and stores nothing."""
        return cast("wire.Explanation", await self._json("POST", "/v1/semcache/explain", body=body))

    async def explained(self, request_id: str) -> wire.Explanation:
        """What was considered for a past request."""
        return cast("wire.Explanation", await self._json("GET", f"/v1/semcache/explain/{quote(request_id, safe='')}"))

    async def feedback(self, marked_id: str, verdict: str) -> wire.FeedbackResult:
        """Mark the hit of a request, or an entry, as `wrong` or `right`."""
        body = {"id": marked_id, "verdict": verdict}
        return cast("wire.FeedbackResult", await self._json("POST", "/v1/semcache/feedback", body=body))

    async def audit(self) -> wire.AuditReport:
        return cast("wire.AuditReport", await self._json("GET", "/v1/semcache/audit"))

    async def tune(self, max_error: Sequence[float], max_hit_error: Sequence[float]) -> wire.TuneReport:
        """What every pair of these budgets would have served of the recorded requests; changes nothing."""
        body = {"max_error": list(max_error), "max_hit_error": list(max_hit_error)}
        return cast("wire.TuneReport", await self._json("POST", "/v1/semcache/tune", body=body))

    # Model and daemon

    async def models(self) -> list[wire.ModelStatus]:
        return cast("list[wire.ModelStatus]", (await self._json("GET", "/v1/semcache/models"))["models"])

    async def load_model(self) -> wire.ModelStatus:
        return cast("wire.ModelStatus", await self._json("POST", "/v1/semcache/models/load", body={}))

    async def unload_model(self) -> wire.ModelStatus:
        return cast("wire.ModelStatus", await self._json("POST", "/v1/semcache/models/unload", body={}))

    async def shutdown(self, timeout_s: float = 30) -> None:
        """Ask the daemon to finish what runs, for at most `timeout_s`, and end; returns at once."""
        await self._json("POST", "/v1/semcache/shutdown", body={"timeout_s": timeout_s})

    # HTTP

    async def _json(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        import httpx

        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s)
        with self._translated():
            response = await self._http.request(
                method, path, json=body, params=params, headers=headers, timeout=timeout
            )
        self._check(response)
        try:
            answer = response.json()
        except ValueError as error:
            raise errors.ProtocolError(f"{self.where} answered {path} with something that is not JSON") from error
        return cast("dict[str, Any]", answer)

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        import httpx

        connect_s = min(CONNECT_TIMEOUT_S, self.timeout_s)
        timeout = httpx.Timeout(read_timeout_s or self.timeout_s, connect=connect_s, pool=None)
        with self._translated():
            async with self._http.stream(method, path, json=body, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    await response.aread()
                self._check(response)
                yield response

    def _check(self, response: httpx.Response) -> None:
        """Raise what the daemon raised; raise ProtocolError for an answer that is not of our protocol."""
        spoken = response.headers.get("X-Semcache-Protocol")
        if spoken != str(wire.PROTOCOL) and (spoken is not None or not response.is_server_error):
            version = response.headers.get("X-Semcache-Version")
            peer = f"semcache {version} with protocol {spoken}" if spoken else "not a semcache daemon"
            raise errors.ProtocolError(
                f"{self.where} is {peer}, this command speaks protocol {wire.PROTOCOL}; "
                + ("restart it: `semcache daemon restart`" if spoken else "check --url, --socket and SEMCACHE_URL")
            )
        if response.is_error:
            raise _error_of(response)

    def _chunk(self, data: str) -> dict[str, Any]:
        """One event of a stream; raises the error it carries."""
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise errors.ProtocolError(f"{self.where} streamed something that is not JSON: {data[:80]!r}") from error
        _raise_error_in(chunk)
        return cast("dict[str, Any]", chunk)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """httpx exceptions as ours."""
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise errors.DaemonUnreachableError(
                f"no daemon answers at {self.where} ({error}); start it with `semcache daemon start`"
            ) from error
        except httpx.TimeoutException as error:
            raise errors.RequestTimeoutError(
                f"the daemon at {self.where} sent nothing for too long; `semcache logs` tells what it is doing"
            ) from error
        except httpx.HTTPError as error:
            detail = str(error) or type(error).__name__
            raise errors.DaemonUnreachableError(
                f"the connection to the daemon at {self.where} broke: {detail}"
            ) from error


def _checked_url(url: str) -> str:
    """`url` without a trailing `/v1`, so that OPENAI_BASE_URL works as it is."""
    if not url.startswith(("http://", "https://")):
        raise errors.UsageError(f"--url {url!r}: must start with http:// or https://", param="url")
    return url.rstrip("/").removesuffix("/v1")


def _error_of(response: httpx.Response) -> errors.SemcacheError:
    retry_after = response.headers.get("Retry-After", "")
    retry_after_s = float(retry_after) if retry_after.isdigit() else None
    try:
        _raise_error_in(response.json(), retry_after_s=retry_after_s)
    except errors.SemcacheError as error:
        return error
    except ValueError:
        pass
    code = _BY_STATUS.get(response.status_code, errors.SemcacheError.code)
    text = " ".join(response.text.split())[:200]
    message = f"the daemon answered {response.status_code} to {response.url.path}: {text or response.reason_phrase}"
    return errors.from_code(code, message, retry_after_s=retry_after_s)


def _raise_error_in(body: object, *, retry_after_s: float | None = None) -> None:
    """Raise the error that a body or a stream chunk carries, if it carries one."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        message = str(error.get("message") or "the daemon gave no reason")
        code = str(error.get("code") or errors.SemcacheError.code)
        raise errors.from_code(code, message, param=error.get("param"), retry_after_s=retry_after_s)


async def _sse(response: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """(event, data) of a server-sent event stream.

    Not `aiter_lines`: it also splits at U+2028 and friends, which JSON may carry unescaped inside a string.
    """
    event, data = "message", list[str]()
    async for line in _lines(response):
        if not line:
            if data:
                yield event, "\n".join(data)
            event, data = "message", []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("event:"):
            event = line[6:].strip()


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    rest = b""
    async for piece in response.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode()
