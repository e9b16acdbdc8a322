"""Global options, accepted before and after every command, and the decorator that gives them to a command.

One parser decides: each command carries the options in its own signature, so a value that looks like one
(`--system "--json"`) stays a value. A command module only declares its arguments; the body imports what it needs,
because `semcache --help` loads every command module.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from semcache import __version__
from semcache.errors import UsageError

PANEL = "Global options"


@dataclass(frozen=True)
class Options:
    """What every command was told about output and about which daemon to talk to."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    autostart: bool = True
    socket: Path | None = None
    url: str | None = None

    def with_environment(self) -> Options:
        """Flags win over SEMCACHE_URL and SEMCACHE_SOCKET; a URL wins over a socket."""
        if self.socket and self.url:
            raise UsageError("--socket and --url name two daemons; give one of them", param="url")
        if self.socket or self.url:
            return self
        url, socket = os.environ.get("SEMCACHE_URL"), os.environ.get("SEMCACHE_SOCKET")
        return Options(
            self.json, self.quiet, self.verbose, self.autostart,
            socket=Path(socket) if socket and not url else None, url=url or None,
        )  # fmt: skip


class Given:
    """The global options seen so far on one command line; later ones win."""

    def __init__(self) -> None:
        self.options = Options()

    def add(self, new: Options) -> Options:
        old = self.options
        self.options = Options(
            json=old.json or new.json,
            quiet=old.quiet or new.quiet,
            verbose=old.verbose or new.verbose,
            autostart=old.autostart and new.autostart,
            socket=new.socket or old.socket,
            url=new.url or old.url,
        )
        return self.options


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"semcache {__version__}\n")
        raise typer.Exit


def _flag(*names: str, help_text: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=PANEL, **more)


def _global_options(
    _ctx: typer.Context,
    as_json: Annotated[bool, _flag("--json", help_text="Print data as JSON on stdout.")] = False,
    quiet: Annotated[bool, _flag("--quiet", "-q", help_text="Nothing on stderr but errors.")] = False,
    verbose: Annotated[bool, _flag("--verbose", "-v", help_text="Say more; a traceback with an error.")] = False,
    no_autostart: Annotated[bool, _flag("--no-autostart", help_text="Never start the daemon.")] = False,
    socket: Annotated[Path | None, _flag("--socket", help_text="The daemon's socket [SEMCACHE_SOCKET].")] = None,
    url: Annotated[str | None, _flag("--url", help_text="A daemon over HTTP [SEMCACHE_URL].")] = None,
    version: Annotated[
        bool, _flag("--version", help_text="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    new = Options(as_json, quiet, verbose, not no_autostart, socket, url)
    _ctx.ensure_object(Given).add(new)


_GLOBAL_PARAMETERS = [
    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for parameter in inspect.signature(_global_options, eval_str=True).parameters.values()
]


def group(help_text: str, *, name: str | None = None) -> typer.Typer:
    """A command group that takes the global options too; without a command it prints its help."""
    app = typer.Typer(
        name=name,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    return app


def command(
    app: typer.Typer, name: str, *, panel: str | None = None
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Register a function whose first parameter is `options: Options`; what it returns is the exit code."""

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(function)
        def invoke(*args: Any, _ctx: typer.Context, **values: Any) -> None:
            mine = {parameter.name: values.pop(parameter.name) for parameter in _GLOBAL_PARAMETERS[1:]}
            _global_options(_ctx, **mine)
            code = _writing(functools.partial(function, _ctx.ensure_object(Given).options.with_environment(), **values))
            if code:
                raise typer.Exit(code)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        invoke.__signature__ = inspect.Signature(parameters + _GLOBAL_PARAMETERS)  # type: ignore[attr-defined]
        app.command(name, rich_help_panel=panel)(invoke)
        return function

    return register


def _writing(run: Callable[[], int | None]) -> int | None:
    """Run a command; a reader that went away (`| head`) ends it quietly."""
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
