"""`semcache ask`: the answer on stdout, one line about the cache on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from semcache.cli.options import Options, command

Strategy = Literal["per_user", "global_user", "global_only", "no_cache"]
CacheMode = Literal["auto", "lossless", "exact", "prefix", "off"]

HOW, CACHE = "Model", "Cache"


def register(app: typer.Typer) -> None:
    command(app, "ask", panel="Use")(ask)


def ask(
    options: Options,
    prompt: Annotated[
        str | None, typer.Argument(help="The question; `-` reads it from stdin.", metavar="[PROMPT]")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.", rich_help_panel=HOW)] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="A text file as context (repeatable).", rich_help_panel=HOW),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Which model.", rich_help_panel=HOW)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.", rich_help_panel=HOW)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy (default).", rich_help_panel=HOW)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.", rich_help_panel=HOW)] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest.", rich_help_panel=HOW)] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", rich_help_panel=HOW)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End the answer before this text (repeatable).", rich_help_panel=HOW)
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Sub-user who asks.", rich_help_panel=CACHE)] = None,
    strategy: Annotated[
        Strategy | None, typer.Option(help="What may be read, where it is stored.", rich_help_panel=CACHE)
    ] = None,
    cache: Annotated[CacheMode | None, typer.Option(help="Which reuse is allowed.", rich_help_panel=CACHE)] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Compute anew and store.", rich_help_panel=CACHE)] = False,
    no_store: Annotated[
        bool, typer.Option("--no-store", help="Write nothing of its text to disk.", rich_help_panel=CACHE)
    ] = False,
    cached_only: Annotated[
        bool, typer.Option("--cached-only", help="A stored answer or exit 5.", rich_help_panel=CACHE)
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what the cache considered, and why.", rich_help_panel=CACHE)
    ] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
) -> int:
    """Ask the model, through the cache.

    Piped stdin is appended to the prompt. The answer is all there is on stdout; a line on stderr says what was reused.
    """
    from semcache.cli import asking

    question = asking.Question(
        prompt=asking.whole_prompt(prompt, file or ()),
        cache_control=asking.cache_control(cache, refresh=refresh, no_store=no_store, cached_only=cached_only),
        fields={
            "model": model, "user": user, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p,
            "top_k": top_k, "seed": seed, "stop": stop or None, "cache_strategy": strategy, "cache": cache,
            "explain": explain or None,
        },
        system=system,
    )  # fmt: skip
    return asking.run(options, question, stream=not no_stream, explain=explain)
