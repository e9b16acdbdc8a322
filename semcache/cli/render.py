"""How things look on a terminal: tables, units, JSON, notes. stdout is data, stderr is everything else.

Written by hand rather than with rich: a rich table cuts its cells at 80 columns in a pipe, and the import costs more
than the request.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from semcache.cli.options import Options

DIM, BOLD, RED, GREEN, YELLOW = "2", "1", "31", "32", "33"
UNKNOWN = "–"


def out(text: str = "") -> None:
    """One line of data."""
    sys.stdout.write(f"{text}\n")


def out_json(data: Any) -> None:
    """`data` on stdout, the same bytes on a terminal and in a pipe."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    out(json.dumps(data, indent=2, ensure_ascii=not utf8))


def note(options: Options, text: str, *, style: str = DIM) -> None:
    """One line for the person, on stderr; `--quiet` drops it."""
    if not options.quiet:
        warn(text, style=style)


def warn(text: str, *, style: str = "") -> None:
    """One line on stderr, whatever the options."""
    try:
        sys.stdout.flush()
        sys.stderr.write(paint(text, style, sys.stderr) + "\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        pass  # nobody reads stderr; stdout is what counts


def paint(text: str, style: str, stream: TextIO) -> str:
    """`text` in an ANSI style where the stream is a terminal that wants colour."""
    plain = not style or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """Aligned columns; only a terminal cuts the last one, at its width."""
    limit = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None
    for index, line in enumerate(aligned(columns, rows, right=right)):
        out(paint(cut(line, limit) if limit else line, BOLD if index == 0 else "", sys.stdout))


def aligned(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> list[str]:
    """The lines of a table, its header first."""
    cells = [list(columns), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(_width(row[column]) for row in cells) for column in range(len(columns))]
    numbers = set(right)
    lines = []
    for row in cells:
        padded = [
            " " * (width - _width(cell)) + cell if name in numbers else cell + " " * (width - _width(cell))
            for name, width, cell in zip(columns, widths, row, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """`name  value` lines."""
    listed = list(rows)
    width = max((_width(name) for name, _value in listed), default=0)
    for name, value in listed:
        out(f"{paint(name, DIM, sys.stdout)}{' ' * (width - _width(name))}  {value}")


def one_line(text: str) -> str:
    """`text` without line breaks and without control characters: a stored prompt must not steer the terminal."""
    return " ".join("".join(" " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char for char in text).split())


def cut(text: str, limit: int) -> str:
    """`text` in at most `limit` terminal cells."""
    if _width(text) <= limit:
        return text
    kept, used = "", 1
    for char in text:
        used += _width(char)
        if used > limit:
            break
        kept += char
    return kept + "…"


def quoted(text: str, limit: int = 60) -> str:
    return f'"{cut(one_line(text), limit)}"'


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def size(num_bytes: float | None) -> str:
    if num_bytes is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def millis(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if value < 10:
        return f"{value:.1f} ms"
    return f"{value:.0f} ms" if value < 1000 else seconds(value / 1000)


def seconds(value: float | None) -> str:
    """A duration in its two leading units."""
    if value is None:
        return UNKNOWN
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    minutes, hours, days = value / 60, value / 3600, value / 86400
    if hours < 1:
        return f"{int(minutes)} min {int(value % 60)} s" if minutes < 10 else f"{int(minutes)} min"
    return f"{int(hours)} h {int(minutes % 60)} min" if days < 1 else f"{int(days)} d {int(hours % 24)} h"


def ago(value: float | None) -> str:
    """An age as a person says it."""
    if value is None:
        return "age unknown"
    if value < 60:
        return "just now" if value < 10 else f"{value:.0f} s ago"
    for limit, unit, per in ((3600, "min", 60), (86400, "h", 3600)):
        if value < limit:
            return f"{int(value / per)} {unit} ago"
    return f"{int(value / 86400)} d ago"


def since(created: str) -> str:
    """The age of an ISO 8601 time stamp."""
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return created
    return ago(max(0.0, (datetime.now(UTC) - then.astimezone(UTC)).total_seconds()))


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share * 100:.1f} %"


def count(value: int | None) -> str:
    """A whole number with thin groups of three."""
    return UNKNOWN if value is None else f"{value:,}".replace(",", " ")
