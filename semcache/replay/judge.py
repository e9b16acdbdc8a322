"""Is an answer the expected one? Plain text rules, no model; and how sure a rate is.

One function judges both questions of a replay: *correct* (against the expected answers) and *wrong hit* (a semantic
answer against what the model itself says without the cache).
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Callable, Iterable

JUDGES = ("exact", "contains", "f1", "none")
F1_THRESHOLD = 0.8
_Z95 = 1.959964
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = str.maketrans("", "", string.punctuation + "’‘“”…–—¿¡«»")


def normalised(text: str) -> list[str]:
    """Words without case, punctuation, articles and extra blanks; what all rules compare."""
    words = text.casefold().translate(_PUNCTUATION).split()
    # A text of articles only ("A") keeps them, or every such answer would equal every other.
    return [word for word in words if word not in _ARTICLES] or words


def is_exact(answer: str, reference: str) -> bool:
    return normalised(answer) == normalised(reference)


def is_contained(answer: str, reference: str) -> bool:
    """Whether the reference stands in the answer, word by word; "no" does not stand in "nothing"."""
    said, wanted = normalised(answer), normalised(reference)
    if not wanted:
        return said == wanted
    return any(said[at : at + len(wanted)] == wanted for at in range(len(said) - len(wanted) + 1))


def f1(answer: str, reference: str) -> float:
    """Overlap of words as the harmonic mean of precision and recall, as in SQuAD."""
    said, wanted = normalised(answer), normalised(reference)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def is_close(answer: str, reference: str) -> bool:
    return f1(answer, reference) >= F1_THRESHOLD


_RULES: dict[str, Callable[[str, str], bool]] = {"exact": is_exact, "contains": is_contained, "f1": is_close}


def agrees(judge: str, answer: str, references: Iterable[str]) -> bool | None:
    """Whether the answer agrees with any reference; None when nothing can be said."""
    wanted = list(references)
    if judge == "none" or not wanted:
        return None
    return any(_RULES[judge](answer, reference) for reference in wanted)


def wilson95(hits: int, n: int) -> tuple[float, float] | None:
    """The Wilson 95 % interval of a rate; None without observations."""
    if n == 0:
        return None
    rate, z2 = hits / n, _Z95**2
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Rounding may leave 1e-18 where the interval ends exactly at 0 or 1.
    return (0.0 if hits == 0 else max(0.0, middle - half), 1.0 if hits == n else min(1.0, middle + half))
