"""The belief that every scope starts with. The numbers are in `prior.json`, written by `tools/fit_prior.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semcache.daemon.cache.features import FEATURES, in_order

PATH = Path(__file__).with_suffix(".json")
_POSITIONS = {name: 1 + i for i, name in enumerate(FEATURES)}


@dataclass(frozen=True)
class Prior:
    """A weight for a constant 1 and for each feature, in the order of FEATURES, on the feature's scale."""

    weights: tuple[float, ...]
    variances: tuple[float, ...]  # how far a scope's weights may be from these, squared
    centres: tuple[float, ...]
    scales: tuple[float, ...]

    def standard(self, features: Mapping[str, float]) -> list[float]:
        """The constant, then each feature minus its centre over its scale."""
        return [
            (value - centre) / scale
            for value, centre, scale in zip((1.0, *in_order(features)), self.centres, self.scales, strict=True)
        ]

    def position(self, name: str) -> int:
        """Where a feature's weight is."""
        return _POSITIONS[name]


def read_prior(found: Mapping[str, Any]) -> Prior:
    """The prior in a JSON object; KeyError where a feature is missing."""
    constant = {**found["constant"], "centre": 0.0, "scale": 1.0}
    rows = [constant, *(found["features"][name] for name in FEATURES)]
    weights, variances, centres, scales = (
        tuple(float(row[key]) for row in rows) for key in ("weight", "variance", "centre", "scale")
    )
    return Prior(weights, variances, centres, scales)


PRIOR = read_prior(json.loads(PATH.read_text(encoding="utf-8")))
