"""`semcache replay FILE`: a dataset through the daemon, a table by outcome on stdout, a saved run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from semcache.cli.options import Options, command
from semcache.errors import GateFailedError, SemcacheError, UsageError
from semcache.wire.protocol import STRATEGIES

if TYPE_CHECKING:
    from semcache.replay.dataset import Dataset
    from semcache.replay.options import ReplayOptions
    from semcache.replay.replay import Result
    from semcache.replay.sender import Sender

# `model` is in the list so that its refusal can say why.
Judge = Literal["exact", "contains", "f1", "model", "none"]

LOAD, CACHE, RESULT = "Load", "Cache", "Result"


def register(app: typer.Typer) -> None:
    command(app, "replay", panel="Use")(replay)


def replay(
    options: Options,
    file: Annotated[str, typer.Argument(help="JSON, JSONL or CSV, or the name of a bundled dataset.", metavar="FILE")],
    users: Annotated[
        int | None, typer.Option(help="Deal the rows to sub-users u1 to uN.", rich_help_panel=LOAD)
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Requests in flight; N,N,… runs each.", metavar="N[,N…]", rich_help_panel=LOAD)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Constant arrivals, requests per second.", rich_help_panel=LOAD)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many rows.", rich_help_panel=LOAD)] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Another order, by --seed.", rich_help_panel=LOAD)] = False,
    seed: Annotated[int | None, typer.Option(help="Of the order.", rich_help_panel=LOAD)] = None,
    repeat: Annotated[int, typer.Option(help="Ask everything K times.", metavar="K", rich_help_panel=LOAD)] = 1,
    mapping: Annotated[
        str | None,
        typer.Option("--map", help="Names of the file's fields.", metavar="question=q,answer=a", rich_help_panel=LOAD),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Which model.", rich_help_panel=LOAD)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.", rich_help_panel=LOAD)] = None,
    target: Annotated[
        str | None, typer.Option(help="Any OpenAI-compatible server instead.", metavar="URL", rich_help_panel=LOAD)
    ] = None,
    strategy: Annotated[
        list[str] | None,  # Typer takes no list of Literal
        typer.Option(help="Repeatable: side by side.", metavar="|".join(STRATEGIES), rich_help_panel=CACHE),
    ] = None,
    cold: Annotated[
        bool | None,
        typer.Option("--cold/--warm", help="Isolated, removed afterwards (default); or not.", rich_help_panel=CACHE),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also every prompt with the cache off.", rich_help_panel=CACHE)
    ] = False,
    judge: Annotated[Judge, typer.Option(help="When an answer is correct.", rich_help_panel=RESULT)] = "contains",
    gate: Annotated[
        list[str] | None,
        typer.Option(help="Exit 6 unless it holds: ttft_p99<=200ms.", metavar="EXPR", rich_help_panel=RESULT),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="An earlier run, or `last`.", metavar="RUN", rich_help_panel=RESULT)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with an interrupted run.", metavar="RUN", rich_help_panel=RESULT)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Save the run here.", metavar="DIR", rich_help_panel=RESULT)] = None,
    cost_per_hour: Annotated[float | None, typer.Option(help="Of the machine.", rich_help_panel=RESULT)] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No live line on a terminal.", rich_help_panel=RESULT)] = False,
) -> int:
    """Send a dataset through the cache; report hits, latency and correctness by outcome.

    Cold by default: nothing that was stored before can help, and nothing stays. `--baseline` measures what the cache
    changes: the same prompts without it.
    """
    from semcache.replay.gates import Gate
    from semcache.replay.layouts import parse_mapping
    from semcache.replay.options import ReplayOptions

    if target and cold:
        raise UsageError("--cold needs a namespace of semcache, which --target does not have; leave it away")
    wanted = ReplayOptions(
        dataset=file, mapping=parse_mapping(mapping), users=users, strategies=tuple(strategy or ()),
        concurrency=_numbers(concurrency), rate=rate, limit=limit, shuffle=shuffle, seed=seed, repeat=repeat,
        cold=cold is not False, baseline=baseline, judge=judge, gates=tuple(Gate.parse(text) for text in gate or ()),
        compare=compare, resume=resume, out=out, target=target, model=model, max_tokens=max_tokens,
        cost_per_hour=cost_per_hour,
    )  # fmt: skip
    return _replay(options, wanted, plain=plain)


def _replay(options: Options, wanted: ReplayOptions, *, plain: bool) -> int:
    import asyncio
    from datetime import datetime

    from semcache.cli.connect import paths_of
    from semcache.replay.dataset import load_dataset
    from semcache.replay.replay import check_gates
    from semcache.replay.rundir import find_run, load_summaries, new_path

    dataset = load_dataset(wanted.dataset, wanted.mapping)
    check_gates(wanted, dataset)
    runs = paths_of(options).runs_dir
    before = load_summaries(find_run(wanted.compare, runs)) if wanted.compare else None
    if wanted.resume:
        path = find_run(wanted.resume, runs)
    else:
        path = wanted.out.expanduser() if wanted.out else new_path(runs, dataset.name, datetime.now().astimezone())
    result = asyncio.run(_run(options, wanted, dataset, path, plain=plain))
    _print(options, result, path, before)
    return _exit(options, result)


async def _run(options: Options, wanted: ReplayOptions, dataset: Dataset, path: Path, *, plain: bool) -> Result:
    from semcache.cli.connect import connected, wait_ready
    from semcache.replay.sender import DaemonSender
    from semcache.replay.target import TargetSender

    if wanted.target:
        async with TargetSender(wanted) as target:
            return await _send(options, wanted, dataset, path, target, plain=plain)
    async with connected(options) as client:
        await wait_ready(options, client)
        return await _send(options, wanted, dataset, path, DaemonSender(client, wanted), plain=plain)


async def _send(
    options: Options, wanted: ReplayOptions, dataset: Dataset, path: Path, sender: Sender, *, plain: bool
) -> Result:
    import asyncio
    import signal
    from contextlib import closing

    from semcache.replay.progress import Progress
    from semcache.replay.replay import Replay, begin

    task = asyncio.current_task()
    assert task is not None
    # Ended by `timeout` or a job scheduler, it saves and removes its namespace as after Ctrl-C.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    server = await sender.describe()
    with closing(begin(wanted, dataset, path, server)) as run_dir:
        progress = Progress(quiet=options.quiet, plain=plain)
        return await Replay(wanted, dataset, sender, server, run_dir, progress).run()


def _print(options: Options, result: Result, path: Path, before: list[dict[str, Any]] | None) -> None:
    from semcache.cli import render
    from semcache.replay import report
    from semcache.replay.rundir import one_or_list

    comparison = report.compared(before, result.summaries) if before else ""
    if options.json:
        render.out_json(one_or_list(result.summaries))
        render.note(options, f"{comparison}saved in {path}", style="")
    else:
        render.out(report.render(result.summaries, path, comparison).rstrip("\n"))


def _exit(options: Options, result: Result) -> int:
    """The exit code, after everything is saved and shown."""
    from semcache.cli import main, render
    from semcache.replay.report import failed_gates

    if result.interrupted:
        return main.INTERRUPTED
    error: SemcacheError | None = result.failure
    failed = failed_gates(result.summaries)
    if error is None and failed:
        error = GateFailedError("; ".join(f"gate {text}" for text in failed))
    if error is None:
        return 0
    if not options.json:
        raise error
    # stdout already holds the summary; a second document behind it would make neither readable.
    render.warn(f"semcache: {error.message}")
    return next(code for cls, code in main.EXIT_CODES if isinstance(error, cls))


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"--concurrency {text!r}: expected numbers like 4 or 1,4,16", param="concurrency") from error
