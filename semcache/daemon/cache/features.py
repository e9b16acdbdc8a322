"""Differences between two wordings that an embedding hardly sees and that change the answer.

Each is evidence with a name that the receipt shows. English word lists; other languages simply yield less evidence.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?", re.UNICODE)
_NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split()
    )
} | {"first": "1", "second": "2", "third": "3", "fourth": "4", "fifth": "5"}
# Phrases that hold a negation and negate nothing that is asked.
_IDIOMS = re.compile(
    r"\byes or no\b"
    r"|\b(?:can't|cannot|can not|couldn't|don't|do not)(?: quite| even)? (?:remember|recall|know|think of)\b"
)
_NEGATIONS = set("not no never without neither nor none cannot except isnt arent dont".split())
_FUNCTION_WORDS = set(
    "a an the of in on at to for from by with and or is are was were be been do does did has have had can could would "
    "will shall should may might must i you he she it we they me us them my your his her its our their this that these "
    "those what which who whom whose when where why how please tell name give know there so as if than then".split()
)
# Words that name different ends of one scale; two wordings that use different ones ask different things.
_SCALES = [
    set(group.split())
    for group in (
        "tallest longest largest highest deepest widest biggest smallest shortest lowest fastest slowest oldest "
        "newest heaviest lightest hottest coldest brightest richest poorest youngest nearest farthest most least",
        "begin began begun start started starts end ended ends finish finished finishes",
        "open opens opening opened close closes closing closed",
        "on off",
        "male female",
        "man woman men women boy girl father mother",
        "millimetre millimetres centimetre centimetres metre metres kilometre kilometres",
        "inch inches foot feet yard yards mile miles",
        "gram grams kilogram kilograms tonne tonnes ounce ounces pound pounds",
        "seconds minute minutes hour hours day days week weeks month months year years",
        "enable disable enabled disabled",
        "before after",
        "north south east west northern southern eastern western",
        "increase decrease raise lower",
        "minimum maximum min max",
        "buy sell",
        "import export",
        "include exclude",
        "allow forbid allowed forbidden",
        "monday tuesday wednesday thursday friday saturday sunday",
        "january february march april june july august september october november december",
    )
]


def words(text: str) -> list[str]:
    return [match.group().replace("’", "'") for match in _WORD.finditer(text)]


def _numbers(tokens: list[str]) -> set[str]:
    return {_NUMBER_WORDS.get(t, t) for t in tokens if t in _NUMBER_WORDS or any(c.isdigit() for c in t)}


def _num_negations(text: str) -> int:
    tokens = words(_IDIOMS.sub(" ", text.lower().replace("’", "'")))
    return sum(t.replace("'", "") in _NEGATIONS or t.endswith("n't") for t in tokens)


def _names(raw: list[str]) -> set[str]:
    """Capitalised words that are not merely the start of the sentence, lower-cased."""
    return {w.lower() for w in raw[1:] if w[0].isupper() and w.lower() not in _FUNCTION_WORDS}


def differences(a: str, b: str) -> list[str]:
    """Names of the features in which the two wordings disagree, most telling first; empty when none is seen."""
    raw_a, raw_b = words(a), words(b)
    low_a, low_b = [w.lower() for w in raw_a], [w.lower() for w in raw_b]
    set_a, set_b = set(low_a), set(low_b)
    found = []
    if _numbers(low_a) != _numbers(low_b):
        found.append("number")
    if _num_negations(a) != _num_negations(b):
        found.append("negation")
    if (_names(raw_a) - set_b) or (_names(raw_b) - set_a):
        found.append("entity")
    if any((set_a & scale) != (set_b & scale) and (set_a & scale) and (set_b & scale) for scale in _SCALES):
        found.append("scale")
    content_a = [w for w in low_a if w not in _FUNCTION_WORDS]
    content_b = [w for w in low_b if w not in _FUNCTION_WORDS]
    if content_a != content_b and sorted(content_a) == sorted(content_b):
        found.append("order")
    return found
