"""How a number looks on screen: units, fixed widths, bars. Knows nothing about requests."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

UNKNOWN = "–"
LEVELS = " ▁▂▃▄▅▆▇█"


def ms(value: float | None) -> str:
    """Milliseconds with three telling digits; seconds from ten thousand on."""
    if value is None:
        return UNKNOWN
    if value < 99.95:
        return f"{value:.1f} ms"
    if value < 9_999.5:
        return f"{value:,.0f} ms"
    return seconds(value / 1e3)


def seconds(value: float) -> str:
    """A span of time that was saved or used."""
    if value < 99.95:
        return f"{value:.1f} s"
    return f"{value:,.0f} s" if value < 3600 else duration(value)


def duration(value_s: float) -> str:
    """`9m41s`, `3h12m`, `2d4h`: an age or a countdown."""
    whole = max(0, int(value_s))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600}h"


def size(num_bytes: float) -> str:
    """Decimal units, as disks and the configuration use them."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.0f} kB" if num_bytes else "0 MB"
    unit, factor = ("MB", 1e6) if num_bytes < 1e9 else ("GB", 1e9)
    value = num_bytes / factor
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:,.0f} {unit}"


def used_of(used_bytes: int, limit_bytes: int) -> str:
    """Both in the unit of the limit, unless that shows nothing of what is used."""
    unit, factor = ("MB", 1e6) if limit_bytes < 1e9 else ("GB", 1e9)
    if 0 < used_bytes < factor / 20:
        return f"{size(used_bytes)}/{size(limit_bytes)}"
    return f"{used_bytes / factor:.1f}/{limit_bytes / factor:.1f} {unit}"


def count(value: int) -> str:
    return f"{value:,}"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share * 100:.1f} %"


def score(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def share(part: int, whole: int) -> float | None:
    """None before anything was counted: unknown is not 0."""
    return part / whole if whole else None


def one_line(text: str) -> str:
    """Line breaks would tear a table row."""
    return " ".join(text.split())


def bar(filled: float, width: int, style: str) -> Content:
    """A heavy line on a light track: readable without colour, half a cell exact."""
    halves = round(min(1.0, max(0.0, filled)) * width * 2)
    if filled > 0:
        halves = max(1, halves)
    heavy = "━" * (halves // 2) + "╸" * (halves % 2)
    return Content.assemble((heavy, style), ("─" * (width - len(heavy)), ".faint"))


def columns(values: Sequence[float], width: int, height: int) -> list[str]:
    """A column chart, newest value at the right, `height` lines of eighths; scaled to the largest value shown."""
    shown = [0.0] * max(0, width - len(values)) + list(values)[-width:]
    top = max(shown, default=0.0) or 1.0
    eighths = [max(1, round(value / top * height * 8)) if value else 0 for value in shown]
    return ["".join(LEVELS[min(8, max(0, e - 8 * row))] for e in eighths) for row in reversed(range(height))]
