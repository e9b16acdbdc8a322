"""The command `semcache`: the table of commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError  # Typer has no public name for these

from semcache import errors
from semcache.cli import options, render

# Command or group, and the module whose `register(app)` adds it; the order is that of `semcache --help`.
COMMANDS = {
    "ask": "ask", "replay": "replay", "top": "top", "stats": "stats", "cache": "cache", "ps": "stats", "model": "model",
    "daemon": "daemon", "logs": "logs", "config": "config", "doctor": "doctor",
}  # fmt: skip

# Walked by class order: the first row that fits decides.
EXIT_CODES: tuple[tuple[type[errors.SemcacheError], int], ...] = (
    (errors.UsageError, 2),
    (errors.ForbiddenError, 2),
    (errors.DaemonUnreachableError, 3),
    (errors.StoreError, 3),
    (errors.RequestTimeoutError, 4),
    (errors.CachedOnlyMissError, 5),
    (errors.GateFailedError, 6),
    (errors.ProtocolError, 7),
    (errors.ModelLoadError, 8),
    (errors.SemcacheError, 1),
)
INTERRUPTED = 130

ERROR_TYPES: tuple[tuple[type[errors.SemcacheError], str], ...] = (
    (errors.UsageError, "invalid_request_error"),
    (errors.AuthError, "authentication_error"),
    (errors.ForbiddenError, "permission_error"),
    (errors.NotFoundError, "not_found_error"),
    (errors.PinLimitError, "conflict_error"),
    (errors.BusyError, "rate_limit_error"),
    (errors.UnavailableError, "unavailable_error"),
    (errors.RequestTimeoutError, "timeout_error"),
    (errors.SemcacheError, "server_error"),
)


def build(first_word: str = "") -> typer.Typer:
    """The command tree; where the command line starts with a command, only its own branch, which is much quicker."""
    app = options.group("A local LLM that never computes the same thing twice.", name="semcache")
    wanted = [COMMANDS[first_word]] if first_word in COMMANDS else dict.fromkeys(COMMANDS.values())
    for module in wanted:
        import_module(f"semcache.cli.{module}").register(app)
    return app


def main(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code and never raises one of our errors."""
    given = options.Given()
    try:
        code = build(*arguments[:1])(args=list(arguments), prog_name="semcache", standalone_mode=False, obj=given)
        if code == INTERRUPTED:  # Typer turns KeyboardInterrupt into this
            render.warn("semcache: interrupted")
        return code if isinstance(code, int) else 0
    except NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return 2
    except ClickException as error:
        return _report(errors.UsageError(error.format_message()), given.options, arguments)
    except typer.Abort:
        render.warn("semcache: nothing done")
        return 1
    except KeyboardInterrupt:
        render.warn("semcache: interrupted")
        return INTERRUPTED
    except errors.SemcacheError as error:
        return _report(error, given.options, arguments)


def _report(error: errors.SemcacheError, seen: options.Options, arguments: Sequence[str]) -> int:
    # A command line that does not parse never reached the options, so look for the words themselves.
    if seen.json or "--json" in arguments:
        kind = next(name for cls, name in ERROR_TYPES if isinstance(error, cls))
        body = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
        render.out_json({"error": body})
        sys.stdout.flush()
    else:
        if seen.verbose:
            import traceback

            sys.stderr.write("".join(traceback.format_exception(error)))
        render.warn(f"semcache: {error.message}")
    return next(code for cls, code in EXIT_CODES if isinstance(error, cls))


def run() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not turn an answer into a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))
