"""A question becomes a request: checked, tokenised, with the donor's tokens in the served model's vocabulary."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from semcache.daemon.cache.lookup import ModelKey
from semcache.daemon.cache.similar import Neighbour
from semcache.daemon.live import Ask
from semcache.daemon.request import Donor, Event, Request
from semcache.daemon.served import Served
from semcache.errors import PromptTooLongError, UsageError


def tokenise(served: Served, ask: Ask) -> list[int]:
    """The prompt's token ids; raises UsageError for none and PromptTooLongError where no room is left to answer."""
    tokens = served.tokenizer.encode_chat(ask.messages, dict(ask.template_options))
    if not tokens:
        raise UsageError("the prompt has no tokens", param="messages")
    if len(tokens) >= served.info.context_tokens:
        raise PromptTooLongError(
            f"the prompt has {len(tokens)} tokens and the served context is {served.info.context_tokens}, "
            "one of them for the answer; shorten the prompt or raise engine.max_context_tokens",
            param="messages",
        )
    return tokens


def request_of(ask: Ask, tokens: Sequence[int], served: Served, publish: Callable[[Event], None]) -> Request:
    """The request that will make the whole trip; its limit is cut to the room behind the prompt."""
    room = served.info.context_tokens - len(tokens)
    return Request(
        id=f"req_{secrets.token_hex(8)}", user=ask.user, model=served.info.name, messages=ask.messages,
        prompt_tokens=tokens, sampling=replace(ask.sampling, max_tokens=min(ask.sampling.max_tokens, room)),
        options=ask.options, publish=publish, template_options=ask.template_options,
        noise_seed=secrets.randbits(62), explains=ask.explains,
    )  # fmt: skip


def donor_of(found: Neighbour, served: Served, now_s: float) -> Donor:
    """The stored answer in the served model's tokens: another model's text may be cut into others."""
    entry = found.entry
    is_own = entry.fingerprint == served.info.fingerprint
    tokens = entry.answer_tokens if is_own else _answer_tokens(served, entry.answer)
    return Donor(
        tokens, entry.finish_reason == "stop", scope=found.scope.kind, entry_id=entry.id, prompt=entry.prompt,
        score=found.score, age_s=max(0.0, now_s - entry.created_at),
    )  # fmt: skip


def _answer_tokens(served: Served, answer: str) -> tuple[int, ...]:
    """Without what the tokenizer puts in front of a prompt: no answer begins so."""
    tokens, empty = served.tokenizer.encode_text(answer), served.tokenizer.encode_text("")
    num_in_front = next(
        (i for i, pair in enumerate(zip(tokens, empty, strict=False)) if len(set(pair)) > 1), len(empty)
    )
    return tuple(tokens[num_in_front:])


def model_key(served: Served, *, block_tokens: int) -> ModelKey:
    """What answers and KV of the served model are keyed by."""
    info = served.info
    return ModelKey(
        name=info.name, folder_id=info.folder_id, fingerprint=info.fingerprint, numerics=served.numerics,
        cuts=served.cuts, block_tokens=block_tokens,
    )  # fmt: skip
