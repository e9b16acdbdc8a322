"""What two wordings have in common and where they differ, as numbers with names that the receipt shows.

An embedding hardly sees some differences that change the answer. English word lists; other languages simply yield less
evidence. Plain Python: runs for every candidate of every miss, so what is read from one wording is remembered. Of
answers nothing is, and long ones are not read: a wording fits the embedder's window, an answer may be as long as the
context.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

# What a policy may look at, in this order; `cache explain` shows the sentences.
FEATURES: dict[str, str] = {
    "distance": "log of 1 - cosine: how far apart the embeddings are",
    "margin": "cosine minus that of the best candidate with another answer, within +-0.2; 0.2 without a rival",
    "agreement": "share of the other candidates that have the same answer, out of four",
    "backed": "margin times agreement: a rival matters less where others agree",
    "overlap": "content words in common, as a share of all content words of both",
    "trigrams": "groups of three letters in common (Dice)",
    "function": "function words in common, as a share of all function words of both",
    "question": "1 where the first question words differ",
    "number": "1 where the numbers differ",
    "negation": "1 where the count of negations differs",
    "entity": "1 where one side names something that the other does not",
    "scale": "1 where the sides use different ends of one scale",
    "order": "1 where the same content words come in another order",
    "regret": "how much less likely, in nats a token, the model found the entry's answer in past drafts than its own",
    "regret_known": "1 where the entry has been a draft before",
}
# Differences that can be the first reason against a candidate.
DIFFERENCES = ("number", "negation", "entity", "scale", "order", "question")
_MAX_MARGIN = 0.2
_MAX_REGRET = 5.0  # nats
# Longer answers are the same only letter by letter. Ten of 800 words would be read for 2 ms at every miss, and hardly
# ever do two long ones differ in punctuation alone; taken for two, they speak against serving either.
_MAX_READ = 500
_QUESTION_WORDS = frozenset(
    "what which who whom whose when where why how is are was were do does did can could should would will has have had "
    "may".split()
)
_ENDINGS = ("'s", "ing", "ed", "es", "s")

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
    frozenset(group.split())
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
    return _WORD.findall(text.replace("’", "'"))


@dataclass(frozen=True)
class _Text:
    """What one wording says about itself."""

    words: frozenset[str]
    numbers: frozenset[str]
    num_negations: int
    names: frozenset[str]
    content: tuple[str, ...]
    sorted_content: tuple[str, ...]
    stems: frozenset[str]
    trigrams: frozenset[str]
    function: frozenset[str]
    question: str
    scales: dict[int, frozenset[str]]  # the words used of each scale, where any is


@lru_cache(maxsize=8192)
def _read(text: str) -> _Text:
    raw = words(text)
    low = [w.lower() for w in raw]
    found = frozenset(low)
    content = tuple(w for w in low if w not in _FUNCTION_WORDS)
    line = f" {' '.join(low)} "
    return _Text(
        words=found,
        numbers=frozenset(_numbers(low)),
        num_negations=_num_negations(text),
        names=frozenset(_names(raw)),
        content=content,
        sorted_content=tuple(sorted(content)),
        stems=frozenset(_stem(w) for w in content),
        trigrams=frozenset(line[i : i + 3] for i in range(len(line) - 2)) if low else frozenset(),
        function=found - frozenset(content),
        question=next((w for w in low if w in _QUESTION_WORDS), ""),
        scales={i: used for i, scale in enumerate(_SCALES) if (used := found & scale)},
    )


def _stem(word: str) -> str:
    """Without its commonest ending; rough on purpose, both sides are cut alike."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


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
    return _differences(_read(a), _read(b))


def contradicts(a: str, b: str) -> bool:
    """Whether two answers name different numbers, negations or names, as `differences` sees them in wordings."""
    one, other = words(a), words(b)
    low_one, low_other = [w.lower() for w in one], [w.lower() for w in other]
    return (
        _numbers(low_one) != _numbers(low_other)
        or _num_negations(a) != _num_negations(b)
        or not _names(one) <= set(low_other)
        or not _names(other) <= set(low_one)
    )


def _differences(a: _Text, b: _Text) -> list[str]:
    found = []
    if a.numbers != b.numbers:
        found.append("number")
    if a.num_negations != b.num_negations:
        found.append("negation")
    if (a.names - b.words) or (b.names - a.words):
        found.append("entity")
    if any(b.scales.get(i, used) != used for i, used in a.scales.items()):
        found.append("scale")
    if a.content != b.content and a.sorted_content == b.sorted_content:
        found.append("order")
    return found


def compare(a: str, b: str) -> dict[str, float]:
    """The features of two wordings alone; the order of the two does not matter."""
    one, other = _read(a), _read(b)
    telling = _differences(one, other)
    shared, either = len(one.stems & other.stems), len(one.stems | other.stems)
    num_trigrams = len(one.trigrams) + len(other.trigrams)
    functions = len(one.function | other.function)
    return {
        "overlap": shared / either if either else 1.0,
        "trigrams": 2 * len(one.trigrams & other.trigrams) / num_trigrams if num_trigrams else 1.0,
        "function": len(one.function & other.function) / functions if functions else 1.0,
        "question": float(one.question != other.question),
    } | {name: float(name in telling) for name in ("number", "negation", "entity", "scale", "order")}


def measure(
    prompt: str, candidates: Sequence[tuple[str, str, float]], regrets: Sequence[float | None]
) -> list[dict[str, float]]:
    """All FEATURES of each candidate (prompt, answer, cosine); `regrets` are what is known of their entries."""
    answers = [_plain(answer) if len(answer) <= _MAX_READ else answer for _, answer, _ in candidates]
    wordings = [normalised(wording) for wording, _, _ in candidates]
    found = []
    for i, (wording, _, score) in enumerate(candidates):
        rival = max((s for (_, _, s), a in zip(candidates, answers, strict=True) if a != answers[i]), default=None)
        margin = _MAX_MARGIN if rival is None else max(-_MAX_MARGIN, min(_MAX_MARGIN, score - rival))
        # One question kept in two scopes is one witness.
        alike = {wordings[j] for j, a in enumerate(answers) if a == answers[i]} - {wordings[i]}
        agreement = min(1.0, len(alike) / 4)
        regret = regrets[i]
        found.append(
            {
                "distance": math.log(max(1 - score, 0.0) + 0.005),
                "margin": margin,
                "agreement": agreement,
                "backed": margin * agreement,
                **compare(prompt, wording),
                "regret": min(regret, _MAX_REGRET) if regret is not None else 0.0,
                "regret_known": float(regret is not None),
            }
        )
    return found


@lru_cache(maxsize=8192)
def normalised(text: str) -> str:
    """The wording without case, punctuation and spacing: equal where only these differ."""
    return _plain(text)


def _plain(text: str) -> str:
    return " ".join(words(text.lower())) or text.strip()


def in_order(features: Mapping[str, float]) -> list[float]:
    """The values in the order of FEATURES; absent is 0."""
    return [features.get(name, 0.0) for name in FEATURES]
