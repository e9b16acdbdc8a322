"""One open connection to a daemon: how requests and streams travel, and error bodies back to the classes raised.

Knows no endpoint; `client.py` does. `httpx` is imported on first use, because `semcache --help` must not pay for it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from semcache import errors
from semcache.paths import Paths, check_socket_path
from semcache.wire.protocol import PROTOCOL

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 10.0

_BY_STATUS = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "queue_full", 503: "unavailable"}


class Connection:
    """To one daemon, over its Unix socket or a URL; `close` it."""

    def __init__(self, *, socket: Path | None, url: str | None, token: str | None, timeout_s: float) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
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

    async def close(self) -> None:
        await self._http.aclose()

    async def json(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """The answer to one request."""
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
    async def events(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
        """(event, data) of a stream as they come; leaving the context hangs up."""
        import httpx

        connect_s = min(CONNECT_TIMEOUT_S, self._timeout_s)
        timeout = httpx.Timeout(read_timeout_s or self._timeout_s, connect=connect_s, pool=None)
        with self._translated():
            async with self._http.stream(method, path, json=body, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    await response.aread()
                self._check(response)
                yield _sse(response)

    def chunk(self, data: str) -> dict[str, Any]:
        """What one event of a stream says; raises the error it carries."""
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise errors.ProtocolError(f"{self.where} streamed something that is not JSON: {data[:80]!r}") from error
        _raise_error_in(chunk)
        return cast("dict[str, Any]", chunk)

    def _check(self, response: httpx.Response) -> None:
        """Raise what the daemon raised; raise ProtocolError for an answer that is not of our protocol."""
        spoken = response.headers.get("X-Semcache-Protocol")
        if spoken != str(PROTOCOL) and (spoken is not None or not response.is_server_error):
            version = response.headers.get("X-Semcache-Version")
            peer = f"semcache {version} with protocol {spoken}" if spoken else "not a semcache daemon"
            raise errors.ProtocolError(
                f"{self.where} is {peer}, this command speaks protocol {PROTOCOL}; "
                + ("restart it: `semcache daemon restart`" if spoken else "check --url, --socket and SEMCACHE_URL")
            )
        if response.is_error:
            raise _error_of(response)

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
