"""`semcache config`: settings with their origin, and the user file that changes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from semcache import errors
from semcache.cli import render
from semcache.cli.options import Options, command, group

Key = Annotated[str, typer.Argument(help="For example `model.name`.", metavar="KEY")]


def register(app: typer.Typer) -> None:
    config = group("Settings with their origin, and the file that changes them.")
    command(config, "list")(list_keys)
    command(config, "get")(get)
    command(config, "set")(set_key)
    command(config, "unset")(unset)
    command(config, "path")(path)
    app.add_typer(config, name="config", rich_help_panel="Setup")


def list_keys(options: Options) -> int:
    """Every setting, its value and where that comes from."""
    from semcache.cli.connect import paths_of
    from semcache.config import Config, keys

    config = Config.load(paths_of(options).config_file)
    rows: list[dict[str, Any]] = [
        {
            "key": key,
            "value": config.get(key),
            "origin": config.origins.get(key, "default"),
            "default": default,
            "help": text,
        }
        for key, (_kind, default, text) in keys().items()
    ]
    if options.json:
        render.out_json({"config": rows})
    else:
        shown = ([row["key"], _text(row["value"]), row["origin"], row["help"]] for row in rows)
        render.table(("key", "value", "origin", "meaning"), shown)
    return 0


def get(options: Options, key: Key) -> int:
    """Print one value."""
    from semcache.cli.connect import paths_of
    from semcache.config import Config

    config = Config.load(paths_of(options).config_file)
    value = config.get(key)
    if options.json:
        render.out_json({"key": key, "value": value, "origin": config.origins.get(key, "default")})
    else:
        render.out(_text(value))
    return 0


def set_key(options: Options, key: Key, value: Annotated[str, typer.Argument()]) -> int:
    """Write one value to the user's config file."""
    from semcache.cli.connect import paths_of
    from semcache.cli.toml_edit import with_key
    from semcache.config import Config, parse_value

    file = paths_of(options).config_file
    parsed = parse_value(key, value, "command line")
    if _loads(file):
        Config.load(file, flags={key: parsed})  # settings that exclude each other are refused before the file changes
    _change(file, lambda text: with_key(text, key, parsed))
    if options.json:
        render.out_json({"key": key, "value": parsed, "path": str(file)})
    _tell(options, f"{key} = {_text(parsed)} in {file}")
    return 0


def unset(options: Options, key: Key) -> int:
    """Remove one value from the user's config file, so that the default counts again."""
    from semcache.cli.connect import paths_of
    from semcache.cli.toml_edit import without_key
    from semcache.config import require_key

    file = paths_of(options).config_file
    was_set = _change(file, lambda text: without_key(text, key))
    if not was_set:
        require_key(key)  # a key that is no key may still be removed from the file
    if options.json:
        render.out_json({"key": key, "removed": was_set, "path": str(file)})
    _tell(options, f"{key} {'removed from' if was_set else 'was not set in'} {file}", changed=was_set)
    return 0


def path(options: Options) -> int:
    """Print where the user's config file is."""
    from semcache.cli.connect import paths_of

    file = paths_of(options).config_file
    if options.json:
        render.out_json({"path": str(file), "exists": file.exists()})
    else:
        render.out(str(file))
    return 0


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _loads(file: Path) -> bool:
    from semcache.config import Config

    try:
        Config.load(file)
    except errors.ConfigError:
        return False
    return True


def _change(file: Path, edit: Callable[[str], str]) -> bool:
    """Rewrite the file; whether that changed it."""
    import tomllib

    from semcache.cli.toml_edit import write_atomically
    from semcache.paths import make_private_dir

    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        after = edit(before)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise errors.ConfigError(f"cannot read config file {file}: {error}") from error
    if after == before:
        return False
    if not file.parent.exists():
        make_private_dir(file.parent)
    write_atomically(file, after)
    return True


def _tell(options: Options, text: str, *, changed: bool = True) -> None:
    """Say what happened, what else overrides it, and that a running daemon keeps its settings."""
    from semcache.cli.connect import answers, paths_of

    render.note(options, text)
    if changed and not options.url and answers(paths_of(options).socket):
        render.note(options, "the running daemon keeps its settings until `semcache daemon restart`")
