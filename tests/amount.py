"""How much is tried: a sample in `make test`, everything in `make nightly`. One setting, the same code."""

from __future__ import annotations

import os

IS_NIGHTLY = os.environ.get("NIGHTLY", "0") != "0"
