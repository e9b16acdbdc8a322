"""The bundled datasets as tests read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "semcache" / "assets" / "datasets"


def rows(name: str, split: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return [row for row in found if split is None or row["split"] == split]
