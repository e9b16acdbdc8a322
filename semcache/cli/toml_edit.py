"""Change one key of a TOML file and leave every other line as it is, comments included.

Knows plain `key = value` lines below `[section]` headers and `section.key = value` lines above them. The result is
parsed again and compared, so a file written in another manner is refused rather than damaged.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from semcache.config import Value
from semcache.errors import ConfigError

_HEADER = re.compile(r"^\s*\[\s*(?P<name>[\w.-]+)\s*\]\s*(#.*)?$")
_ENTRY = re.compile(
    r"^(?P<left>\s*(?P<key>[\w.-]+(?:\s*\.\s*[\w-]+)*)\s*=\s*)"
    r"""(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"'\[{]+)(?P<right>\s*(#.*)?)$"""
)


def with_key(text: str, key: str, value: Value) -> str:
    """`text` with `section.name` set."""
    section, name = key.split(".")
    lines = text.splitlines()
    at = _find(lines, section, name)
    if at is not None:
        found = _ENTRY.match(lines[at])
        assert found
        lines[at] = f"{found['left']}{literal(value)}{found['right']}"
    else:
        _insert(lines, section, f"{name} = {literal(value)}")
    return _checked(text, lines, key, value)


def without_key(text: str, key: str) -> str:
    """`text` without `section.name`; an empty section header stays."""
    section, _, name = key.partition(".")
    lines = text.splitlines()
    at = _find(lines, section, name)
    if at is not None:
        del lines[at]
    return _checked(text, lines, key, None)


def literal(value: Value) -> str:
    """`value` in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step; a link keeps pointing at its target, the mode stays."""
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as new:
            new.write(text)
        os.chmod(new.name, mode)
        os.replace(new.name, target)
    except OSError as error:
        raise ConfigError(f"cannot write config file {path}: {error.strerror}") from error


def _find(lines: list[str], section: str, name: str) -> int | None:
    """The line that sets `section.name`."""
    current = ""
    for index, line in enumerate(lines):
        if header := _HEADER.match(line):
            current = header["name"]
        elif entry := _ENTRY.match(line):
            dotted = re.sub(r"\s", "", entry["key"])
            if (f"{current}.{dotted}" if current else dotted) == f"{section}.{name}":
                return index
    return None


def _insert(lines: list[str], section: str, entry: str) -> None:
    """Put `entry` after the last line of its section, or a new section at the end."""
    headers = [(index, found["name"]) for index, line in enumerate(lines) if (found := _HEADER.match(line))]
    start = next((index for index, name in headers if name == section), None)
    if start is None:
        lines += [*([""] if lines and lines[-1].strip() else []), f"[{section}]", entry]
        return
    end = next((index for index, _name in headers if index > start), len(lines))
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    lines.insert(end, entry)


def _checked(before: str, lines: list[str], key: str, value: Value | None) -> str:
    """The new text, if it means the old one with just this key changed."""
    after = "\n".join(lines) + ("\n" if lines else "")
    wanted = _flat(tomllib.loads(before))
    wanted.pop(key, None)
    if value is not None:
        wanted[key] = value
    try:
        fits = _flat(tomllib.loads(after)) == wanted
    except tomllib.TOMLDecodeError:
        fits = False
    if not fits:
        raise ConfigError(
            f"the config file sets {key} in a manner that cannot be edited here; change it by hand", param=key
        )
    return after


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
