"""`--gate wrong_hits.rate<=0.02`: a limit on a number of the summary, so that a replay can guard a build.

Names are paths into `summary.json`. Short forms: `ttft_p99` is `overall.ttft_ms.p99`, `semantic.total_p50` is
`outcomes.semantic.total_ms.p50`. A count of requests compared with a fraction or a percentage means its share.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from semcache.errors import UsageError

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_EXPRESSION = re.compile(
    r"\s*(?P<name>[A-Za-z_][\w.]*)\s*(?P<op><=|>=|==|<|>)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>ms|s|%)?\s*"
)
_SHORT_TIME = re.compile(r"(?P<before>.*?)(?P<kind>ttft|total)_(?P<percentile>p\d+)")
# Counts of requests and the share that a fraction or a percentage is compared with.
_SHARES = {"answer_hits": "answer_share", "compute_hits": "compute_share", "errors": "error_share"}
_NO_MEASUREMENTS = ("schema", "dataset", "settings", "gates")
_NO_NUMBERS = ("ci95", "series")


@dataclass(frozen=True)
class Gate:
    """One limit, parsed; `limit` is in the unit of the summary (milliseconds, fractions)."""

    text: str
    name: str
    op: str
    limit: float

    @staticmethod
    def parse(text: str) -> Gate:
        found = _EXPRESSION.fullmatch(text)
        if found is None:
            raise UsageError(
                f"--gate {text!r}: expected NAME, one of {' '.join(_OPERATORS)}, and a number with an optional ms, s "
                "or %; for example wrong_hits.rate<=0.02, answer_hits>=50%, ttft_p99<=200ms",
                param="gate",
            )
        name, number, unit = _full_name(found["name"]), found["number"], found["unit"]
        if unit in ("ms", "s") and "_ms" not in name:
            raise UsageError(f"--gate {text!r}: {found['name']} is not a time, so {unit} does not fit", param="gate")
        is_fraction = unit == "%" or not number.lstrip("+-").isdigit()
        scale = {"s": 1000.0, "%": 0.01}.get(unit, 1.0)
        return Gate(text, _SHARES.get(name, name) if is_fraction else name, found["op"], float(number) * scale)


@dataclass(frozen=True)
class Verdict:
    """A gate with the number it met; None is unknown, which never passes."""

    gate: Gate
    value: float | None

    @property
    def passed(self) -> bool:
        return self.value is not None and _OPERATORS[self.gate.op](self.value, self.gate.limit)

    def to_json(self) -> dict[str, Any]:
        return {"gate": self.gate.text, "name": self.gate.name, "value": self.value, "passed": self.passed}


def check(gate: Gate, summary: Mapping[str, Any]) -> Verdict:
    """Compare one gate with a summary; an unknown name is a UsageError that lists what there is."""
    numbers = dict(_numbers(summary))
    for name in (gate.name, f"outcomes.{gate.name}"):
        if name in numbers:
            return Verdict(gate, numbers[name])
    raise UsageError(f"--gate {gate.text!r}: there is no {gate.name!r}; available: {', '.join(numbers)}", param="gate")


def _full_name(name: str) -> str:
    """`ttft_p99` and `semantic.ttft_p99` as paths; other names stay."""
    short = _SHORT_TIME.fullmatch(name)
    if short is None:
        return name
    return f"{short['before'] or 'overall.'}{short['kind']}_ms.{short['percentile']}"


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Every number of a summary by its path; None where it is unknown."""
    for key, value in tree.items():
        if key in (_NO_MEASUREMENTS if not prefix else _NO_NUMBERS):
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield f"{prefix}{key}", value
