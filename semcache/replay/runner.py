"""Sends jobs with bounded concurrency or at a constant rate, and turns every answer and failure into a record.

One failing request never ends the run; only a server that is gone does. Knows nothing about files and tables.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from semcache.errors import BusyError, DaemonUnreachableError, SemcacheError, UnavailableError
from semcache.replay import judge
from semcache.replay.options import Combination, ReplayOptions
from semcache.replay.plan import Job
from semcache.replay.record import RUN, Reply, RequestRecord
from semcache.replay.sender import CacheUse, Sender

MAX_ATTEMPTS: Final = 8
DEFAULT_RETRY_S: Final = 0.5
MAX_RETRY_S: Final = 30.0


@dataclass(frozen=True)
class Pass:
    """One way through the jobs: the baseline, or one combination of strategy and concurrency."""

    phase: str
    combination: Combination
    use: CacheUse
    baseline_answers: Mapping[int, str]  # by the prompt's number


class Runner:
    """Runs passes. `on_record` is called once for every finished request, in order of completion."""

    def __init__(
        self,
        sender: Sender,
        options: ReplayOptions,
        on_record: Callable[[RequestRecord], None],
        elapsed_s: Callable[[], float],
    ) -> None:
        self._sender = sender
        self._options = options
        self._on_record = on_record
        self._elapsed_s = elapsed_s

    async def run(self, jobs: Sequence[Job], this: Pass) -> None:
        """Every job once. Raises DaemonUnreachableError when the server is gone; cancelled, it records nothing more."""
        queue = iter(list(enumerate(jobs)))
        started = time.monotonic()
        num_workers = min(this.combination.concurrency, len(jobs))
        workers = [asyncio.create_task(self._work(queue, this, started)) for _ in range(num_workers)]
        try:
            if workers:
                done, _pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            # The connections are closed before anybody removes the namespace that they write to.
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, queue: Iterator[tuple[int, Job]], this: Pass, started: float) -> None:
        for place, job in queue:
            due = None if self._options.rate is None else started + place / self._options.rate
            if due is not None:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            late_ms = None if due is None else round((time.monotonic() - due) * 1000, 3)
            self._on_record(await self._record(job, this, late_ms))

    async def _record(self, job: Job, this: Pass, late_ms: float | None) -> RequestRecord:
        reply: Reply | None = None
        error: dict[str, str] | None = None
        attempts, started_s = 0, self._elapsed_s()
        while reply is None and error is None:
            attempts, started_s = attempts + 1, self._elapsed_s()
            try:
                reply = await self._sender.send(job, this.use)
            except (BusyError, UnavailableError) as problem:
                if attempts == MAX_ATTEMPTS:
                    error = _described(problem)
                else:
                    await asyncio.sleep(_pause_s(problem))
            except DaemonUnreachableError as problem:
                # A broken connection is one failed request, unless nobody is there any more.
                if not await self._sender.is_reachable():
                    raise
                error = _described(problem)
            except SemcacheError as problem:
                error = _described(problem)
        correct, wrong, reference = self._judged(job, this, reply)
        return RequestRecord(
            phase=this.phase,
            strategy=this.combination.strategy,
            concurrency=this.combination.concurrency,
            index=job.index,
            round=job.round,
            row=job.row.number,
            prompt=job.prompt,
            user=job.user,
            group=job.row.group,
            question=job.row.question,
            expected=list(job.row.accepted),
            started_s=round(started_s, 6),
            late_ms=late_ms,
            attempts=attempts,
            reply=reply,
            error=error,
            correct=correct,
            wrong=wrong,
            reference=reference,
        )

    def _judged(self, job: Job, this: Pass, reply: Reply | None) -> tuple[bool | None, bool | None, str | None]:
        """correct, wrong and what wrong was judged by. Only a semantic answer can be a wrong hit."""
        if reply is None:
            return None, None, None
        correct = judge.agrees(self._options.judge, reply.answer, job.row.accepted)
        if this.phase != RUN or reply.outcome != "semantic":
            return correct, None, None
        baseline = this.baseline_answers.get(job.prompt)
        if baseline is None:
            return correct, None if correct is None else not correct, None if correct is None else "expected"
        same = judge.agrees(self._options.judge, reply.answer, [baseline])
        return correct, None if same is None else not same, None if same is None else "baseline"


def _pause_s(problem: SemcacheError) -> float:
    """As long as the server asks, with up to a fifth more so that waiting requests do not come back all at once."""
    wanted = DEFAULT_RETRY_S if problem.retry_after_s is None else problem.retry_after_s
    return min(wanted, MAX_RETRY_S) * (1 + random.random() / 5)  # noqa: S311 - jitter, not a secret


def _described(problem: SemcacheError) -> dict[str, str]:
    return {"code": problem.code, "message": problem.message}
