"""What makes two requests the same: everything that changes the answer, hashed. Knows no similarity."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from semcache.daemon.request import Message, Request, Sampling


@dataclass(frozen=True)
class Identity:
    """Hex digests. A semantic candidate must agree on the first three before any similarity is looked at."""

    fingerprint: str
    context_key: str  # system prompt, earlier turns, template options
    params_key: str  # how the next token is chosen, without max_tokens
    request_key: str  # all of it, the last user message and the prompt's tokens


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _turns(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.content] for message in messages]


def _params(sampling: Sampling) -> list[object]:
    if sampling.is_greedy:
        return ["greedy", list(sampling.stop)]
    return [sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed, list(sampling.stop)]


def identify(fingerprint: str, request: Request) -> Identity:
    """The identity of `request` under the model with this fingerprint.

    `max_tokens` is left out: a finished answer that fits serves any limit (`fits`). The tokens are in it because the
    messages are not all that makes them: a template may write the date, another tokenizer release may cut otherwise.
    """
    context_key = _digest("context", _turns(request.messages[:-1]), list(request.template_options))
    params_key = _digest("params", _params(request.sampling))
    tokens = array("q", request.prompt_tokens).tobytes()
    request_key = _digest(
        "request", fingerprint, context_key, params_key, _turns(request.messages[-1:]),
        hashlib.sha256(tokens).hexdigest(),
    )  # fmt: skip
    return Identity(fingerprint, context_key, params_key, request_key)


def fits(sampling: Sampling, finish_reason: str, num_completion_tokens: int) -> bool:
    """Whether a stored answer is what this limit would give: finished within it, or cut at exactly it."""
    if finish_reason == "length":
        return num_completion_tokens == sampling.max_tokens
    return num_completion_tokens <= sampling.max_tokens


def chain_root(scope: str, fingerprint: str, numerics: str) -> str:
    """The salt of a KV block chain: KV is met again only in this scope, of this model, computed in this way."""
    return _digest("kv", scope, fingerprint, numerics)
