"""`semcache model`: what is served, and whether it is in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from semcache.cli import render
from semcache.cli.options import Options, command, group
from semcache.wire.status import ModelStatus

if TYPE_CHECKING:
    from semcache.client import Client

T = TypeVar("T")


def register(app: typer.Typer) -> None:
    model = group("What is served, and whether it is in memory.")
    command(model, "ls")(ls)
    command(model, "info")(info)
    command(model, "load")(load)
    command(model, "unload")(unload)
    app.add_typer(model, name="model", rich_help_panel="Runtime")


def ls(options: Options) -> int:
    """List the models of the daemon."""
    models = _fetch(options, lambda client: client.models())
    if options.json:
        render.out_json({"models": models})
        return 0
    rows = [(m["name"], m["state"], m["architecture"] or "", m["device"] or "", m["dtype"] or "") for m in models]
    render.table(("name", "state", "architecture", "device", "dtype"), rows)
    return 0


def info(options: Options) -> int:
    """Everything known about the model that is served."""

    async def served(client: Client) -> ModelStatus:
        return (await client.status())["model"]

    _show(options, _fetch(options, served))
    return 0


def load(options: Options) -> int:
    """Load the model now instead of at the first question."""
    _show(options, _fetch(options, lambda client: client.load_model()))
    return 0


def unload(options: Options) -> int:
    """Free the model's memory; what is stored stays, the next question loads it again."""
    _show(options, _fetch(options, lambda client: client.unload_model()))
    return 0


def _fetch(options: Options, call: Callable[[Client], Awaitable[T]]) -> T:
    from semcache.cli.connect import fetch

    return fetch(options, call, retries=True)


def _show(options: Options, model: ModelStatus) -> None:
    if options.json:
        render.out_json(model)
        return
    facts = {
        "name": model["name"],
        "state": model["state"] + (f" {model['stage']}" if model["stage"] else ""),
        "error": model["error"],
        "architecture": model["architecture"],
        "parameters": None if model["parameters"] is None else render.count(model["parameters"]),
        "device": model["device"],
        "dtype": model["dtype"],
        "context": None if model["context_tokens"] is None else f"{render.count(model['context_tokens'])} tokens",
        "slots": None if model["slots"] is None else str(model["slots"]),
        "weights": None if model["weights_bytes"] is None else render.size(model["weights_bytes"]),
        "KV": None if model["kv_bytes_per_token"] is None else f"{render.size(model['kv_bytes_per_token'])} per token",
        "fingerprint": model["fingerprint"],
        "unloads in": None if model["unloads_in_s"] is None else render.seconds(model["unloads_in_s"]),
    }
    render.pairs((name, fact) for name, fact in facts.items() if fact is not None)
