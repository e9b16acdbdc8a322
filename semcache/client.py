"""The one HTTP client of semcache: a method for every endpoint, wire shapes in and out.

Front ends (CLI, TUI, replay) reach the daemon only through this file. Knows nothing about terminals, settings or
how a daemon is started; how a request travels is `connection.py`'s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

from semcache import errors
from semcache.connection import Connection
from semcache.wire.entries import CheckReport, Cleared, EntryDetail, EntrySummary, FoundEntry, PinResult
from semcache.wire.receipts import AskReceipt, CacheReceipt
from semcache.wire.status import ModelStatus, Stats, Status
from semcache.wire.trust import AuditReport, Explanation, FeedbackResult, TuneReport

# Comment pings come every 15 s; a stream that is silent for longer than this has lost its daemon.
EVENTS_SILENCE_S = 120.0
# A long poll must outlive the wait that the daemon was asked for.
LONG_POLL_MARGIN_S = 60.0


class Client:
    """An open connection to one daemon, over its Unix socket or a URL; use it as an async context manager."""

    def __init__(
        self, *, socket: Path | None = None, url: str | None = None, token: str | None = None, timeout_s: float = 600
    ) -> None:
        self._daemon = Connection(socket=socket, url=url, token=token, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._daemon.close()

    # Asking

    async def ask(self, body: Mapping[str, Any], *, cache_control: str | None = None) -> AskReceipt:
        """One answer, whole."""
        headers = {"Cache-Control": cache_control} if cache_control else {}
        answer = await self._daemon.json(
            "POST", "/v1/chat/completions", body={**body, "stream": False}, headers=headers
        )
        if "semcache" not in answer:
            raise errors.ProtocolError(f"{self._daemon.where} answered without a receipt; is it a semcache daemon?")
        return cast("AskReceipt", answer["semcache"])

    async def ask_stream(
        self, body: Mapping[str, Any], *, cache_control: str | None = None
    ) -> AsyncGenerator[CacheReceipt | str | AskReceipt]:
        """What the cache did, then the text as it is made, then the whole receipt.

        Close it (`contextlib.aclosing`) to cancel: the daemon stops computing when the connection goes away.
        """
        headers = {"Cache-Control": cache_control} if cache_control else {}
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        receipt: AskReceipt | None = None
        async with self._daemon.events("POST", "/v1/chat/completions", body=body, headers=headers) as events:
            async for _event, data in events:
                if data == "[DONE]":
                    break
                chunk = self._daemon.chunk(data)
                note = chunk.get("semcache") or {}
                if "schema" in note:
                    receipt = cast("AskReceipt", note)
                elif "cache" in note:
                    yield cast("CacheReceipt", note["cache"])
                for choice in chunk.get("choices", ()):
                    text = (choice.get("delta") or {}).get("content")
                    if text:
                        yield text
        if receipt is None:
            raise errors.DaemonUnreachableError(
                f"the daemon at {self._daemon.where} ended the answer without a receipt"
            )
        yield receipt

    # Looking

    async def ready(self, wait_s: float) -> None:
        """Return when the model is loaded; raises UnavailableError when it is not within `wait_s`."""
        await self._daemon.json(
            "GET", "/ready", params={"wait_s": f"{wait_s:g}"}, timeout_s=wait_s + LONG_POLL_MARGIN_S
        )

    async def status(self) -> Status:
        return cast("Status", await self._daemon.json("GET", "/v1/semcache/status"))

    async def stats(self) -> Stats:
        return cast("Stats", await self._daemon.json("GET", "/v1/semcache/stats"))

    async def requests(self, limit: int = 50) -> list[AskReceipt]:
        """Newest first, running ones included."""
        answer = await self._daemon.json("GET", "/v1/semcache/requests", params={"limit": limit})
        return cast("list[AskReceipt]", answer["requests"])

    async def events(self) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        """`("request", AskReceipt)`, `("model", ModelStatus)` and so on, until the daemon drains."""
        async with self._daemon.events("GET", "/v1/semcache/events", read_timeout_s=EVENTS_SILENCE_S) as events:
            async for event, data in events:
                yield event, self._daemon.chunk(data)

    # Entries

    async def entries(
        self, limit: int = 50, sort: str = "used", match: str | None = None, user: str | None = None
    ) -> list[EntrySummary]:
        params: dict[str, str | int] = {"limit": limit, "sort": sort}
        filters = {"match": match, "user": user}
        params |= {name: text for name, text in filters.items() if text is not None}
        answer = await self._daemon.json("GET", "/v1/semcache/entries", params=params)
        return cast("list[EntrySummary]", answer["entries"])

    async def entry(self, entry_id: str) -> EntryDetail:
        return cast("EntryDetail", await self._daemon.json("GET", f"/v1/semcache/entries/{quote(entry_id, safe='')}"))

    async def find(self, text: str, *, user: str | None = None, limit: int = 10) -> list[FoundEntry]:
        """The stored prompts nearest in meaning to `text`, nearest first."""
        params: dict[str, str | int] = {"near": text, "limit": limit}
        if user is not None:
            params["user"] = user
        return cast(
            "list[FoundEntry]", (await self._daemon.json("GET", "/v1/semcache/entries", params=params))["entries"]
        )

    async def delete_entry(self, entry_id: str) -> int:
        """How many entries went: 1."""
        answer = await self._daemon.json("DELETE", f"/v1/semcache/entries/{quote(entry_id, safe='')}")
        return int(answer["removed"])

    async def pin(self, entry_id: str, *, pinned: bool = True) -> PinResult:
        """Keep an entry and its prompt's KV until it is unpinned; `pinned=False` unpins."""
        path = f"/v1/semcache/entries/{quote(entry_id, safe='')}/pin"
        return cast("PinResult", await self._daemon.json("PUT" if pinned else "DELETE", path))

    async def clear(
        self, *, namespace: str | None = None, user: str | None = None, keep_pinned: bool = True
    ) -> Cleared:
        """Remove what the caller owns, or the part named."""
        body = {"namespace": namespace, "user": user, "all": None if keep_pinned else True}
        named = {name: value for name, value in body.items() if value is not None}
        return cast("Cleared", await self._daemon.json("POST", "/v1/semcache/clear", body=named))

    async def check(self, fix: bool = False) -> CheckReport:
        return cast("CheckReport", await self._daemon.json("POST", "/v1/semcache/check", body={"fix": fix}))

    # Trust

    async def explain(self, body: Mapping[str, Any]) -> Explanation:
        """What would be done with a prompt now; computes and stores nothing."""
        return cast("Explanation", await self._daemon.json("POST", "/v1/semcache/explain", body=body))

    async def explained(self, request_id: str) -> Explanation:
        """What was considered for a past request."""
        return cast("Explanation", await self._daemon.json("GET", f"/v1/semcache/explain/{quote(request_id, safe='')}"))

    async def feedback(self, marked_id: str, verdict: str) -> FeedbackResult:
        """Mark the hit of a request, or an entry, as `wrong` or `right`."""
        body = {"id": marked_id, "verdict": verdict}
        return cast("FeedbackResult", await self._daemon.json("POST", "/v1/semcache/feedback", body=body))

    async def audit(self) -> AuditReport:
        return cast("AuditReport", await self._daemon.json("GET", "/v1/semcache/audit"))

    async def tune(self, max_error: Sequence[float], max_hit_error: Sequence[float]) -> TuneReport:
        """What every pair of these budgets would have served of the recorded requests; changes nothing."""
        body = {"max_error": list(max_error), "max_hit_error": list(max_hit_error)}
        return cast("TuneReport", await self._daemon.json("POST", "/v1/semcache/tune", body=body))

    # Model and daemon

    async def models(self) -> list[ModelStatus]:
        return cast("list[ModelStatus]", (await self._daemon.json("GET", "/v1/semcache/models"))["models"])

    async def load_model(self) -> ModelStatus:
        return cast("ModelStatus", await self._daemon.json("POST", "/v1/semcache/models/load", body={}))

    async def unload_model(self) -> ModelStatus:
        return cast("ModelStatus", await self._daemon.json("POST", "/v1/semcache/models/unload", body={}))

    async def shutdown(self, timeout_s: float = 30) -> None:
        """Ask the daemon to finish what runs, for at most `timeout_s`, and end; returns at once."""
        await self._daemon.json("POST", "/v1/semcache/shutdown", body={"timeout_s": timeout_s})
