"""Write the trivia data set and its near-miss pairs.

``python tools/make_trivia.py`` rewrites ``semcache/assets/datasets/trivia.json`` and
``trivia_near_misses.json`` byte for byte. Every draw is ordered by a SHA-256 of its
seed, fact and wording, so the bytes depend on no random-number generator and therefore
on no Python version.

The splits are drawn here, before any model sees a row, and checked here: a data set
whose held-out questions were mere re-punctuations of trained ones would measure
nothing, so the generator fails rather than write one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from statistics import fmean

from trivia.facts import FACTS, Fact
from trivia.near_misses import KINDS, NEAR_MISSES
from trivia.wordings import CARRIERS, WORDINGS

SEED = "semcache-trivia-1"
DATASETS = Path(__file__).resolve().parents[1] / "semcache" / "assets" / "datasets"
TRIVIA_FILE = "trivia.json"
NEAR_MISS_FILE = "trivia_near_misses.json"

TRAIN_ROWS = 16
HELD_OUT_ROWS = 2
RESERVED_ROWS = 2
CARRIED_WORDINGS = 14
# A small family carries fewer, so that each of its wordings still meets several facts.
SMALL_FAMILY = 15
CARRIED_WORDINGS_SMALL = 6
# A held-out question at most this close to its nearest trained one is preferred.
PREFERRED_JACCARD = 0.75
MAX_MEAN_JACCARD = 0.6
# How strongly a wording already used often is put back, so that each meets many facts.
USE_PENALTY = 0.15

QUESTION_START = re.compile(r"(Who|What|Which|When|In|On|How|Is|By|Of|Whose) ")

Row = dict[str, str]
Pair = dict[str, str]


class DatasetError(Exception):
    """The data would break one of its own rules."""


def tokens(text: str) -> list[str]:
    """Return the lower-cased words of ``text`` without punctuation."""
    return re.findall(r"\w+", text.lower().replace("'", ""))


def normal(text: str) -> str:
    """Return ``text`` as it reads without case and punctuation."""
    return " ".join(tokens(text))


def bag(text: str) -> tuple[str, ...]:
    """Return what is left of ``text`` without case, punctuation and word order."""
    return tuple(sorted(tokens(text)))


def jaccard(one: str, other: str) -> float:
    """Return the share of distinct words that two texts have in common."""
    left, right = set(tokens(one)), set(tokens(other))
    return len(left & right) / len(left | right)


def nearest(question: str, others: Iterable[str]) -> float:
    """Return the similarity of ``question`` to the most similar of ``others``."""
    return max(jaccard(question, other) for other in others)


def draw(*parts: str) -> float:
    """Return a number in [0, 1) that depends on nothing but ``parts`` and the seed."""
    digest = hashlib.sha256("\x1f".join((SEED, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def fill(wording: str, fact: Fact) -> str:
    """Return the question that asks for ``fact`` in ``wording``."""
    text = wording.format(**fact.slots)
    return text[0].upper() + text[1:] if wording.startswith("{") else text


def carried(family: str) -> list[str]:
    """Return plain questions of ``family`` with small talk put around them."""
    plain = [wording for wording in WORDINGS[family].trained if wording.endswith("?") and QUESTION_START.match(wording)]
    plain.sort(key=lambda wording: draw("carry", family, wording))
    carriers = sorted(CARRIERS, key=lambda carrier: draw("carrier", family, carrier))
    small = len(FACTS[family]) < SMALL_FAMILY
    count = CARRIED_WORDINGS_SMALL if small else CARRIED_WORDINGS
    pairs = zip(cycle(plain), carriers[:count], strict=False)
    return [
        carrier.replace("{q}", wording[0].lower() + wording[1:]).replace("{Q}", wording) for wording, carrier in pairs
    ]


def trained_wordings(family: str) -> list[str]:
    """Return every wording that ``family`` trains with."""
    return [*WORDINGS[family].trained, *carried(family)]


def pick_held_out(candidates: list[str], fact: Fact, train: list[str], count: int, label: str) -> list[str]:
    """Return ``count`` wordings that ask for ``fact`` unlike any trained question.

    A mere reordering of a trained question is never taken; among the rest the drawn
    order decides, with the ones that differ more than a little first.
    """
    bags = {bag(question) for question in train}
    allowed = [w for w in candidates if bag(fill(w, fact)) not in bags]
    if len(allowed) < count:
        raise DatasetError(f"{fact.group}: only {len(allowed)} wordings left for {label}")

    def order(wording: str) -> tuple[float, float]:
        closeness = nearest(fill(wording, fact), train)
        return max(0.0, closeness - PREFERRED_JACCARD), draw(label, fact.group, wording)

    chosen: list[str] = []
    for wording in sorted(allowed, key=order):
        taken = {bag(fill(w, fact)) for w in chosen}
        if len(chosen) < count and bag(fill(wording, fact)) not in taken:
            chosen.append(wording)
    return chosen


def family_rows(family: str) -> list[Row]:
    """Return the rows of one family, fact by fact."""
    trained = trained_wordings(family)
    reserved = list(WORDINGS[family].reserved)
    uses: Counter[str] = Counter()
    rows: list[Row] = []
    for fact in FACTS[family]:
        score = {w: draw("train", fact.group, w) + USE_PENALTY * uses[w] for w in trained}
        ordered = sorted(trained, key=lambda w: score[w])
        chosen = ordered[:TRAIN_ROWS]
        uses.update(chosen)
        train = [fill(w, fact) for w in chosen]
        plain = [w for w in WORDINGS[family].trained if w not in chosen]
        held_out = pick_held_out(plain, fact, train, HELD_OUT_ROWS, "held_out")
        unseen = pick_held_out(reserved, fact, train, RESERVED_ROWS, "held_out_wording")
        for split, wordings in (
            ("train", chosen),
            ("held_out", held_out),
            ("held_out_wording", unseen),
        ):
            rows += [
                {
                    "question": fill(wording, fact),
                    "answer": fact.answer,
                    "group": fact.group,
                    "split": split,
                }
                for wording in wordings
            ]
    return rows


def near_miss_pairs() -> list[Pair]:
    """Return the near-miss pairs, after checking that each is one."""
    answers = {fact.group: fact.answer for facts in FACTS.values() for fact in facts}
    pairs: list[Pair] = []
    seen: set[frozenset[str]] = set()
    for line in NEAR_MISSES.strip().splitlines():
        kind, one, other = line.split()
        if kind not in KINDS or one not in answers or other not in answers:
            raise DatasetError(f"near miss names an unknown kind or group: {line}")
        if answers[one] == answers[other]:
            raise DatasetError(f"near miss with one answer: {line}")
        if frozenset((one, other)) in seen:
            raise DatasetError(f"near miss listed twice: {line}")
        seen.add(frozenset((one, other)))
        pairs.append({"a": one, "b": other, "kind": kind})
    return pairs


def closeness(rows: list[Row], split: str) -> float:
    """Return the mean similarity of a split's questions to their nearest trained one."""
    train: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["split"] == "train":
            train[row["group"]].append(row["question"])
    return fmean(nearest(row["question"], train[row["group"]]) for row in rows if row["split"] == split)


def check(rows: list[Row]) -> None:
    """Raise ``DatasetError`` where ``rows`` break a rule of the data set."""
    owner: dict[str, str] = {}
    train_bags: set[tuple[str, tuple[str, ...]]] = set()
    answers: dict[str, str] = {}
    for row in rows:
        text, group = normal(row["question"]), row["group"]
        if text in owner:
            raise DatasetError(f"{group} and {owner[text]} both ask {row['question']!r}")
        owner[text] = group
        if answers.setdefault(group, row["answer"]) != row["answer"]:
            raise DatasetError(f"{group} has two answers")
        if row["split"] == "train":
            train_bags.add((group, bag(row["question"])))
        if "{" in row["question"] or "  " in row["question"]:
            raise DatasetError(f"badly filled wording: {row['question']!r}")
    for row in rows:
        if row["split"] != "train" and (row["group"], bag(row["question"])) in train_bags:
            raise DatasetError(f"only reordered: {row['question']!r}")
    for split in ("held_out", "held_out_wording"):
        mean = closeness(rows, split)
        if mean > MAX_MEAN_JACCARD:
            raise DatasetError(f"{split}: mean similarity {mean:.3f} to the nearest question")
    for family, wordings in WORDINGS.items():
        known = [*trained_wordings(family), *wordings.reserved]
        if len({normal(wording) for wording in known}) != len(known):
            raise DatasetError(f"{family}: a wording is listed twice")
        bags = {bag(wording) for wording in trained_wordings(family)}
        for wording in wordings.reserved:
            if bag(wording) in bags:
                raise DatasetError(f"{family}: {wording!r} only reorders a trained wording")


def build() -> list[Row]:
    """Return every row of the data set, checked."""
    rows = [row for family in FACTS for row in family_rows(family)]
    check(rows)
    return rows


def render(rows: list[Row] | list[Pair]) -> str:
    """Return ``rows`` as JSON with one row a line, so that diffs read well."""
    body = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{body}\n]\n"


def main() -> None:
    """Write both files and say what they hold."""
    rows, pairs = build(), near_miss_pairs()
    DATASETS.mkdir(parents=True, exist_ok=True)
    for name, text in ((TRIVIA_FILE, render(rows)), (NEAR_MISS_FILE, render(pairs))):
        (DATASETS / name).write_bytes(text.encode("utf-8"))
    splits = Counter(row["split"] for row in rows)
    print(f"{len(rows)} rows {dict(splits)}, {len(pairs)} near misses")
    for split in ("held_out", "held_out_wording"):
        print(f"{split}: mean nearest Jaccard {closeness(rows, split):.3f}")


if __name__ == "__main__":
    main()
