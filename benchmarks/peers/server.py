"""Any server that speaks the OpenAI API, ours on its socket included: times as a client sees them.

Prompts go as token ids to /v1/completions; a server that takes no ids gets their numbers as text, one without that
route gets them as a chat message. The text has these tokens only where the server runs a model that was made here, and
a chat template adds others: its answers are timed and not compared.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx

from benchmarks.peers.answer import Answer, PeerError
from benchmarks.peers.folder import as_text, as_tokens

_TIMEOUT_S = 600.0
_Body = dict[str, Any]


class Server:
    """One target; `close` ends its connections."""

    def __init__(self, name: str, url: str, *, socket: str | None = None, token: str | None = None) -> None:
        self.name = name
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/").removesuffix("/v1"), timeout=_TIMEOUT_S, headers=headers,
            # A kept connection may be closed by an idle server just when the next request goes out.
            transport=httpx.HTTPTransport(uds=socket, limits=httpx.Limits(max_keepalive_connections=0)),
        )  # fmt: skip
        self._way = 0  # which of the ways to send a prompt this server takes
        self._model = self._first_model()

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, sampled: bool = False) -> list[Answer]:
        started = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self._one(prompt, max_tokens, sampled, started), prompts))

    def close(self) -> None:
        self._client.close()

    def _first_model(self) -> str:
        try:
            models = self._client.get("/v1/models").raise_for_status().json()
            return str(models["data"][0]["id"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
            raise PeerError(f"{self.name}: /v1/models gives no model: {error}") from error

    def _one(self, prompt: Sequence[int], max_tokens: int, sampled: bool, started: float) -> Answer:
        common = {
            "model": self._model, "max_tokens": max_tokens, "temperature": 0.8 if sampled else 0.0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        for way in range(self._way, len(_WAYS)):
            path, send = _WAYS[way]
            try:
                with self._client.stream("POST", path, json=common | send(prompt)) as response:
                    if response.status_code in (400, 404, 405, 415, 422) and way + 1 < len(_WAYS):
                        continue
                    self._way = way
                    if response.status_code != 200:
                        said = response.read().decode(errors="replace")[:200]
                        raise PeerError(f"{self.name}: {path} gave {response.status_code}: {said}")
                    answer = _read(response, started)
                    # A chat template puts tokens of its own around the prompt, so nothing else gives this answer.
                    return replace(answer, tokens=()) if path == _CHAT else answer
            except httpx.HTTPError as error:
                raise PeerError(f"{self.name}: {path}: {error}") from error
        raise AssertionError("the last way returns or raises")


_CHAT = "/v1/chat/completions"
# Each way to send a prompt: the route and what the body says.
_WAYS: list[tuple[str, Any]] = [
    # Answers go on to their full length, as everywhere here; a server may know the token that ends one.
    ("/v1/completions", lambda prompt: {"prompt": list(prompt), "ignore_eos": True}),
    ("/v1/completions", lambda prompt: {"prompt": as_text(prompt), "ignore_eos": True}),
    # The names of the two speakers take a token each.
    (_CHAT, lambda prompt: {"messages": [{"role": "user", "content": as_text(prompt[:-2])}]}),
]


def _read(response: httpx.Response, started: float) -> Answer:
    """One stamp for each chunk that carries text; usage says how much of the prompt was cached."""
    stamps: list[float] = []
    text = ""
    cached: int | None = None
    for line in response.iter_lines():
        if not line.startswith("data:") or line.endswith("[DONE]"):
            continue
        now = time.perf_counter()
        chunk: _Body = json.loads(line.removeprefix("data:"))
        if "error" in chunk:
            raise PeerError(f"the stream broke: {chunk['error']}")
        said = "".join(_text(choice) for choice in chunk.get("choices") or ())
        stamps += [now] if said else []
        text += said
        details = (chunk.get("usage") or {}).get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens", cached)
    return Answer(as_tokens(text), started, tuple(stamps), time.perf_counter(), cached_tokens=cached)


def _text(choice: _Body) -> str:
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""
