"""The front door: one dataset through one server, combination after combination, saved whatever happens.

Every way out (the end, Ctrl-C, a server that went away) goes through the same steps: stop the requests in flight,
remove the cold namespace, write the files, return what there is.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from semcache import __version__
from semcache.errors import DaemonUnreachableError, ProtocolError, SemcacheError, UsageError, from_code
from semcache.replay.dataset import Dataset
from semcache.replay.judge import F1_THRESHOLD
from semcache.replay.memory import Memory, sampled
from semcache.replay.options import Combination, ReplayOptions
from semcache.replay.plan import Job, distinct_prompts, plan_jobs
from semcache.replay.progress import Progress
from semcache.replay.record import BASELINE, RUN, RequestRecord
from semcache.replay.rundir import RunDir, saved_options
from semcache.replay.runner import Pass, Runner
from semcache.replay.sender import CacheUse, Sender
from semcache.replay.summary import Measured, judged, summarise

CLEAR_TIMEOUT_S = 30.0


@dataclass
class Result:
    """What a replay left: a summary per combination that was begun, and why it stopped early, if it did."""

    summaries: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    failure: SemcacheError | None = None


class Replay:
    """One run. `run` never raises for a server that goes away or for Ctrl-C; the result says so."""

    def __init__(
        self,
        options: ReplayOptions,
        dataset: Dataset,
        sender: Sender,
        server: Mapping[str, Any],
        run_dir: RunDir,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._dataset = dataset
        self._sender = sender
        self._run_dir = run_dir
        self._progress = progress
        self._jobs = plan_jobs(dataset.rows, options)
        self._server = server
        self._begun: dict[Combination, dict[str, Any]] = {}
        self._memory: dict[Combination, Memory] = {}
        # A resumed run continues the clock where the earlier session stopped.
        already_s = max((record.ended_s for record in run_dir.records), default=0.0)
        began = clock()
        self._elapsed_s = lambda: already_s + clock() - began
        self._runner = Runner(sender, options, self._keep, self._elapsed_s)

    async def run(self) -> Result:
        """Every combination in turn. Cancelled, it returns what there is instead of raising."""
        result = Result()
        try:
            for combination in self._options.combinations:
                await self._combination(combination)
        except (DaemonUnreachableError, ProtocolError) as error:
            result.failure = error
        except asyncio.CancelledError:
            # Ctrl-C. asyncio.run cancels us once; from here on we only save, and a second Ctrl-C ends that too.
            result.interrupted = True
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            self._progress.stop()
            result.summaries = self._summaries(result)
            self._run_dir.save(result.summaries)
        if result.failure is None and not result.interrupted:
            result.failure = self._nothing_worked()
        return result

    def _keep(self, record: RequestRecord) -> None:
        self._run_dir.append(record)
        self._progress.update(record)

    async def _combination(self, combination: Combination) -> None:
        namespace = f"rp-{secrets.token_hex(5)}" if self._options.is_cold else None
        self._begun[combination] = {
            "strategy": combination.strategy,
            "concurrency": combination.concurrency,
            "namespace": namespace,
            "resumed": bool(self._of(combination)),
            "planned": len(self._jobs),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            async with sampled(self._server.get("daemon_pid"), self._elapsed_s) as memory:
                self._memory[combination] = memory
                if self._options.baseline:
                    await self._baseline(combination, namespace)
                use = CacheUse(combination.strategy, None, namespace)
                await self._pass(RUN, combination, use, self._jobs, combination.label)
        finally:
            if namespace:
                await self._remove(namespace)

    async def _baseline(self, combination: Combination, namespace: str | None) -> None:
        """Every prompt once with the cache off, at the same concurrency; strategies side by side share it."""
        shared = Combination(None, combination.concurrency)
        jobs = distinct_prompts(self._jobs)
        use = CacheUse(None, "off", namespace)
        await self._pass(BASELINE, shared, use, jobs, f"baseline x{combination.concurrency}")

    async def _pass(self, phase: str, combination: Combination, use: CacheUse, jobs: list[Job], label: str) -> None:
        latest = self._run_dir.latest()
        done = {record.index for record in latest.values() if record.reply and record.is_of(phase, combination)}
        todo = [job for job in jobs if job.index not in done]
        if not todo:
            return
        if done and phase == RUN and use.namespace:
            self._progress.note(
                f"resuming {label}: {len(done)} of {len(jobs)} are done; the cold cache of the first part was removed, "
                "so the rest starts with an empty one and reuses less"
            )
        self._progress.start(label, len(todo))
        await self._runner.run(todo, Pass(phase, combination, use, self._baseline_answers(combination)))

    def _baseline_answers(self, combination: Combination) -> dict[int, str]:
        return {record.prompt: record.reply.answer for record in self._baselines(combination) if record.reply}

    def _baselines(self, combination: Combination) -> list[RequestRecord]:
        shared = Combination(None, combination.concurrency)
        return [record for record in self._run_dir.latest().values() if record.is_of(BASELINE, shared)]

    def _of(self, combination: Combination) -> list[RequestRecord]:
        return [record for record in self._run_dir.latest().values() if record.is_of(RUN, combination)]

    async def _remove(self, namespace: str) -> None:
        try:
            async with asyncio.timeout(CLEAR_TIMEOUT_S):
                await self._sender.clear(namespace)
        except (SemcacheError, TimeoutError) as error:
            self._progress.warn(f"semcache: the replay's namespace {namespace} could not be removed: {error}")

    def _summaries(self, result: Result) -> list[dict[str, Any]]:
        complete = result.failure is None and not result.interrupted
        server = {name: value for name, value in self._server.items() if name != "daemon_pid"}
        common = {
            **self._options.settings(),
            "judge_threshold": F1_THRESHOLD if self._options.judge == "f1" else None,
            "server": server,
            "semcache_version": __version__,
        }
        return [
            judged(
                summarise(
                    Measured(
                        self._dataset,
                        {**common, **begun, "complete": complete or len(self._of(combination)) == len(self._jobs)},
                        self._of(combination),
                        self._baselines(combination),
                        self._memory.get(combination),
                        self._options.cost_per_hour,
                    )
                ),
                self._options.gates,
            )
            for combination, begun in self._begun.items()
        ]

    def _nothing_worked(self) -> SemcacheError | None:
        """The error of the first request when not one was answered."""
        records = [record for record in self._run_dir.latest().values() if record.phase == RUN]
        if not records or any(record.reply for record in records):
            return None
        error = records[0].error or {}
        reason = f"none of {len(records)} requests was answered; the first one failed with: {error.get('message')}"
        return from_code(str(error.get("code")), reason)


def check_gates(options: ReplayOptions, dataset: Dataset) -> None:
    """Refuse a gate on a name that the summary will not have, before anything is sent."""
    empty = summarise(Measured(dataset, options.settings(), (), cost_per_hour=options.cost_per_hour))
    judged(empty, options.gates)


def begin(options: ReplayOptions, dataset: Dataset, path: Path, server: Mapping[str, Any]) -> RunDir:
    """The open run directory: a new one, or with --resume the one of a run with the same rows and settings."""
    if options.resume is None:
        run_dir = RunDir.create(path)
    else:
        _check_same(path, options, dataset)
        run_dir = RunDir.resume(path)
    run_dir.save_options(
        {
            "options": options.recorded(),
            "settings": options.settings(),
            "dataset": {"path": str(dataset.path), "sha256": dataset.sha256, "rows": len(dataset.rows)},
            "server": {name: value for name, value in server.items() if name != "daemon_pid"},
        }
    )
    return run_dir


def _check_same(path: Path, options: ReplayOptions, dataset: Dataset) -> None:
    """Refuse to continue a run with other rows or other settings: the result would be a mixture."""
    saved = saved_options(path)
    if saved.get("dataset", {}).get("sha256") != dataset.sha256:
        raise UsageError(f"{path} was made from other rows than {dataset.path} holds; start a new run")
    for name, value in options.settings().items():
        before = saved.get("settings", {}).get(name)
        if before != value:
            raise UsageError(
                f"{path} was run with {name} = {before!r}, not {value!r}; give --resume the options of that run"
            )
