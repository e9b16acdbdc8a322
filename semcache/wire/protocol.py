"""What crosses HTTP is typed once, in this package, for daemon, CLI, TUI and replay; here the words of it all.

Plain dictionaries: cheap to import. The daemon validates what it receives in `daemon/bodies.py`; these files only say
what the shapes are.
"""

from __future__ import annotations

from typing import Literal, TypedDict

PROTOCOL = 1

OUTCOMES = ("exact", "semantic", "draft", "prefix", "miss")
# The fuller the disc, the higher the rung; shown beside the word, never alone.
OUTCOME_GLYPHS = {"exact": "●", "semantic": "◕", "draft": "◑", "prefix": "◔", "miss": "○"}
STRATEGIES = ("per_user", "global_user", "global_only", "no_cache")
CACHE_MODES = ("auto", "lossless", "exact", "prefix", "off")

EventKind = Literal["request", "model", "cache"]


class ErrorBody(TypedDict):
    """OpenAI's error object, inside {"error": …}."""

    message: str
    type: str
    param: str | None
    code: str | None
