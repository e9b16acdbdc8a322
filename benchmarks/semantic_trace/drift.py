"""A domain that changes in mid-stream: from questions in many wordings to near-duplicates that ask something else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.semantic_trace.arms import Budget, SemcacheArm
from benchmarks.semantic_trace.campaign import Embed, MakePolicy, Settings
from benchmarks.semantic_trace.neighbours import Ranks
from benchmarks.semantic_trace.run import NEVER, Run, run
from benchmarks.semantic_trace.trace import Pair, Question, normalised, sample

ADVERSARIAL_SHARE = 0.8
# Wrong answers per request are judged over this many requests at a time.
WINDOW = 500


def drifted(
    questions: Sequence[Question], pairs: Sequence[Pair], settings: Settings, seed: int
) -> tuple[list[Question], int]:
    """A stream and the place where its second half begins; no class is in both halves."""
    num = min(settings.limit, len(questions)) // 2
    later = adversarial(pairs, questions, num, seed)
    taken = {question.class_id for question in later}
    rest = [question for question in questions if question.class_id not in taken]
    first = many_wordings(rest, num, seed)
    used = {question.class_id for question in first}
    fill = sample([q for q in rest if q.class_id not in used], max(0, num - len(later)), settings.multi_share, seed)
    second = [*later, *fill]
    random.Random(f"drift:{seed}").shuffle(second)
    return [*first, *second], len(first)


def many_wordings(questions: Sequence[Question], num: int, seed: int) -> list[Question]:
    """Questions of the largest classes, in random order: here serving is easy, and trust grows."""
    sizes = Counter(question.class_id for question in questions)
    rng = random.Random(f"easy:{seed}")
    luck = {class_id: rng.random() for class_id in sizes}
    found = sorted(questions, key=lambda question: (-sizes[question.class_id], luck[question.class_id]))[:num]
    rng.shuffle(found)
    return found


def adversarial(pairs: Sequence[Pair], questions: Sequence[Question], num: int, seed: int) -> list[Question]:
    """Both wordings of pairs that are not the same, most words in common first, for a share of `num` requests."""
    by_text = {normalised(question.text): question for question in questions}
    rng = random.Random(f"adversarial:{seed}")
    kind = [pair for pair in pairs if not pair.same]
    rng.shuffle(kind)
    found: dict[str, Question] = {}
    for pair in sorted(kind, key=lambda pair: -_overlap(pair)):
        a, b = by_text.get(normalised(pair.a)), by_text.get(normalised(pair.b))
        if a is None or b is None or a.class_id == b.class_id:
            continue
        if len(found) + 2 > round(num * ADVERSARIAL_SHARE):
            break
        found |= {a.text: a, b.text: b}
    return list(found.values())


def _overlap(pair: Pair) -> float:
    a, b = set(normalised(pair.a).split()), set(normalised(pair.b).split())
    return len(a & b) / len(a | b)


def measure(
    questions: Sequence[Question], pairs: Sequence[Pair], settings: Settings, budgets: Sequence[Budget], embed: Embed,
    make_policy: MakePolicy, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each budget what was served before and after, when serving stopped, and when the error was back.

    Twice: with all labels, and with only audits after the change.
    """
    stream, change = drifted(questions, pairs, settings, seed)
    ranks = Ranks(embed([question.text for question in stream]))
    rows = []
    for budget in budgets:
        # A computed answer is a free label that warns early; without any, audits of served hits must notice.
        for only_audits_from in (None, change):
            arm = SemcacheArm(make_policy(budget, seed), stream, budget, only_audits_from=only_audits_from)
            labels = "all" if only_audits_from is None else "audits"
            rows.append({"labels": labels} | row(run(arm, stream, ranks, seed=seed), change))
    return rows


def row(made: Run, change: int, window: int = WINDOW) -> dict[str, Any]:
    """Counts before and after `change`, and the way back under the budget."""
    max_error = made.budget.max_error or 0.0
    after = range(change, made.requests)
    fallback = next((place for place in after if made.reasons[place] == "policy:suspended"), None)
    back = back_under(made.wrong[change:].tolist(), max_error, window)
    return {
        "budget": {"max_error": made.budget.max_error, "max_hit_error": made.budget.max_hit_error},
        "seed": made.seed,
        "requests": made.requests,
        "change_at": change,
        "window": window,
        "before": _counts(made, slice(0, change)),
        "after": _counts(made, slice(change, None)),
        "fallback_after_requests": None if fallback is None else fallback - change,
        "fallback_after_audits": None if fallback is None else int(made.audited[change:fallback].sum()),
        "back_after_requests": back,
        "back_after_audits": None if back is None else int(made.audited[change : change + back].sum()),
    }


def back_under(wrong: Sequence[bool], max_error: float, window: int) -> int | None:
    """Requests until the last window over the budget ends, 0 when none is over it, None when the last one still is."""
    size = min(window, len(wrong))
    if size == 0:
        return 0
    sums = np.convolve(np.asarray(wrong, dtype=float), np.ones(size), mode="valid")
    over = np.flatnonzero(sums > max_error * size + 1e-9)
    if over.shape[0] == 0:
        return 0
    return None if over[-1] == sums.shape[0] - 1 else int(over[-1]) + size


def _counts(made: Run, part: slice) -> dict[str, int]:
    return {
        "requests": int(made.served[part].shape[0]),
        "served": int((made.served[part] != NEVER).sum()),
        "wrong": int(made.wrong[part].sum()),
        "audits": int(made.audited[part].sum()),
    }
