"""What `semcache ask` does: builds the question, prints the answer as it comes, describes the receipt."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from semcache.cli import render
from semcache.cli.options import Options
from semcache.cli.receipt import explanation, receipt_line
from semcache.cli.stdin import piped_text
from semcache.client import Client
from semcache.errors import UsageError
from semcache.wire.receipts import AskReceipt

SHORT_HELP = """\
semcache ask "What is the capital of Australia?"
git diff | semcache ask "Write a commit message for this:"
semcache ask --user alice --cache exact "Where did we stop?"
"""


@dataclass(frozen=True)
class Question:
    """One question as the daemon will get it; fields that are None are left to its settings."""

    prompt: str
    fields: Mapping[str, Any]
    system: str | None = None
    cache_control: str | None = None

    def body(self) -> dict[str, Any]:
        for name, value in self.fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be a number", param=name)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": self.prompt})
        for message in messages:
            _check_text(message["content"])
        return {"messages": messages} | {name: value for name, value in self.fields.items() if value is not None}


def whole_prompt(prompt: str | None, files: Sequence[Path]) -> str:
    """The prompt, then the files, then what was piped in."""
    parts = [prompt] if prompt and prompt != "-" else []
    parts += [f"{path.name}:\n{_read(path)}" for path in files]
    piped = piped_text(wait=prompt == "-").strip("\n")
    if piped:
        parts.append(piped)
    whole = "\n\n".join(parts)
    if prompt is None and not whole:
        if sys.stdin is not None and sys.stdin.isatty():
            render.warn(SHORT_HELP)
        raise UsageError("nothing to ask: give a PROMPT, or pipe text into it; `semcache ask --help` shows how")
    if not whole.strip():
        raise UsageError("the prompt is empty", param="prompt")
    return whole


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"--file {path}: not a UTF-8 text file", param="file") from error
    except OSError as error:
        raise UsageError(f"--file {path}: {error.strerror}", param="file") from error


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that are no UTF-8
        raise UsageError("the prompt is not valid UTF-8 text", param="prompt") from error


def cache_control(cache: str | None, *, refresh: bool, no_store: bool, cached_only: bool) -> str | None:
    """The Cache-Control header; refuses what contradicts itself."""
    if cached_only and (refresh or cache == "off"):
        other = "--refresh" if refresh else "--cache off"
        raise UsageError(f"--cached-only and {other} exclude each other: one wants only stored answers, the other none")
    words = (("no-cache", refresh), ("no-store", no_store), ("only-if-cached", cached_only))
    return ", ".join(word for word, wanted in words if wanted) or None


def run(options: Options, question: Question, *, stream: bool, explain: bool) -> int:
    body = question.body()
    receipt = asyncio.run(_ask(options, body, question.cache_control, stream=stream and not options.json))
    if options.json:
        render.out_json(receipt)
    if explain and not options.json:
        for line in explanation(receipt):
            render.warn(line)
    elif not options.quiet and not options.json and (sys.stderr.isatty() or options.verbose):
        render.note(options, receipt_line(receipt))
    return 0


async def _ask(options: Options, body: Mapping[str, Any], control: str | None, *, stream: bool) -> AskReceipt:
    from semcache.cli.connect import connected, with_retries

    async with connected(options, model=True) as client:
        if stream:
            return await with_retries(options, client, lambda: _print_stream(client, body, control))
        receipt = await with_retries(options, client, lambda: client.ask(body, cache_control=control))
    if not options.json:
        _write(receipt["answer"])
        _end_line(receipt["answer"])
    return receipt


async def _print_stream(client: Client, body: Mapping[str, Any], control: str | None) -> AskReceipt:
    """Write the text as it comes; closing the stream early cancels the request in the daemon."""
    last = ""
    try:
        async with aclosing(client.ask_stream(body, cache_control=control)) as parts:
            async for part in parts:
                if isinstance(part, str):
                    _write(part)
                    last = part
                elif "schema" in part:
                    return cast("AskReceipt", part)
    finally:
        _end_line(last)
    raise AssertionError("the client ends every stream with a receipt or an error")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _end_line(text: str) -> None:
    """An answer ends with a line break, whole or cut short; no answer prints nothing."""
    if text and not text.endswith("\n"):
        _write("\n")
