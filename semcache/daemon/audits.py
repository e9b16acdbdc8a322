"""Audits: semantic hits are computed again and compared, and a judge is asked about what the text leaves open.

Idle work: an interrupted audit or question stays due.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from semcache.daemon.cache.equivalence import judge_prompt, read_judgement
from semcache.daemon.cache.identity import Identity, identify
from semcache.daemon.cache.lessons import Lessons, OpenQuestion
from semcache.daemon.idle import Compute, Worked
from semcache.daemon.request import CacheMode, CacheOptions, Donor, Message, Request, RequestState, Sampling
from semcache.daemon.served import Served
from semcache.store.decisions import Decision
from semcache.store.entries import Entry
from semcache.store.store import Store

log = logging.getLogger("semcache.audits")

_JUDGE_TOKENS = 8


class Auditor:
    """Works off the audits that are due, then the judge's questions."""

    def __init__(
        self, *, store: Store, lessons: Lessons, pool: Executor,
        on_audited: Callable[[Decision, bool | None], None] = lambda decision, same: None,
    ) -> None:  # fmt: skip
        self._store = store
        self._lessons = lessons
        self._pool = pool
        self._on_audited = on_audited

    async def work(self, served: Served, compute: Compute) -> Worked:
        """One audit, or one question where no audit is due."""
        due = await self._in_pool(self._store.decisions.due_audits, 1)
        if due:
            # What cannot be written down stays due for a better time.
            return Worked.SOMETHING if await self._audit_or_close(due[0], served, compute) else Worked.REFUSED
        question = self._lessons.next_open()
        if question is None:
            return Worked.NOTHING
        await self._judge(question, served, compute)
        return Worked.SOMETHING

    async def _audit_or_close(self, decision: Decision, served: Served, compute: Compute) -> bool:
        """What cannot be audited must not keep the others waiting; False when nothing could be recorded."""
        try:
            return await self._audit(decision, served, compute)
        except Exception:
            log.exception("the audit of %s failed", decision.request_id)
            return await self._close(decision)

    async def _audit(self, decision: Decision, served: Served, compute: Compute) -> bool:
        """False when its result could not be recorded."""
        entry = await self._in_pool(self._store.get_entry, decision.entry_id) if decision.entry_id else None
        if entry is None:
            return await self._close(decision)
        made: tuple[Request, Identity] | None = await self._in_pool(_again, decision, entry, served)
        if made is None:
            return await self._close(decision)
        request, identity = made
        await compute(request)
        if request.state is RequestState.FINISHED:
            recorded, same = await self._in_pool(self._lessons.audited, decision, entry, identity, request)
            self._on_audited(decision, same)
            return bool(recorded)
        return request.state is RequestState.CANCELLED or await self._close(decision)

    async def _close(self, decision: Decision) -> bool:
        return bool(await self._in_pool(self._store.decisions.close_audit, decision.request_id, decision.entry_id))

    async def _judge(self, question: OpenQuestion, served: Served, compute: Compute) -> None:
        text = judge_prompt(question.prompt, question.answer, question.considered.candidate.answer)
        messages, sampling = (Message("user", text),), Sampling(max_tokens=_JUDGE_TOKENS)
        request: Request | None = await self._in_pool(_request, question.user, messages, sampling, served)
        if request is None:
            return
        await compute(request)
        if request.state is RequestState.FINISHED:
            await self._in_pool(self._lessons.judged, question, read_judgement(request.answer))
        elif request.state is RequestState.CANCELLED:
            self._lessons.reopen(question)

    async def _in_pool(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _again(decision: Decision, entry: Entry, served: Served) -> tuple[Request, Identity] | None:
    """The request that was served from `entry`; None where the record does not suffice to ask it again."""
    messages = (*(Message(role, text) for role, text in entry.messages[:-1]), Message("user", decision.prompt))
    kept = dict(entry.sampling)
    sampling = Sampling(**{**kept, "stop": tuple(kept.get("stop", ()))})
    request = _request(decision.user, messages, sampling, served)
    if request is None:
        return None
    identity = identify(served.info.fingerprint, request)
    if (identity.fingerprint, identity.context_key) != (entry.fingerprint, entry.context_key):
        return None  # another model by now, or template options that the entry does not keep
    request.donor = Donor(entry.answer_tokens, entry.finish_reason == "stop")
    return request, identity


def _request(user: str, messages: Sequence[Message], sampling: Sampling, served: Served) -> Request | None:
    tokens = served.tokenizer.encode_chat(messages, {})
    room = served.info.context_tokens - len(tokens)
    if not tokens or room < 1:
        return None
    return Request(
        id=f"audit_{secrets.token_hex(8)}", user=user, model=served.info.name, messages=tuple(messages),
        prompt_tokens=tokens, sampling=replace(sampling, max_tokens=min(sampling.max_tokens, room)),
        options=CacheOptions(mode=CacheMode.LOSSLESS, no_store=True), publish=lambda _event: None,
        noise_seed=secrets.randbits(62),
    )  # fmt: skip
