"""Which rows are asked by whom in which order, and which options exclude each other."""

from __future__ import annotations

import pytest

from semcache.errors import UsageError
from semcache.replay.dataset import Row
from semcache.replay.options import Combination, ReplayOptions
from semcache.replay.plan import distinct_prompts, plan_jobs

ROWS = [Row(text, None, None, None, None, number) for number, text in enumerate("abcab", start=1)]


def asked(**given) -> str:
    return "".join(job.row.question for job in plan_jobs(ROWS, ReplayOptions("x", **given)))


def test_order():
    assert asked() == "abcab"
    assert asked(limit=2, repeat=3) == "ababab"
    shuffled = asked(shuffle=True, seed=1)
    assert shuffled == asked(shuffle=True, seed=1) != asked(shuffle=True, seed=2)
    assert sorted(shuffled) == sorted("abcab")
    assert asked(shuffle=True, seed=1, limit=3) == shuffled[:3]


def test_index_is_the_place_in_the_plan():
    jobs = plan_jobs(ROWS, ReplayOptions("x", repeat=2))
    assert [job.index for job in jobs] == list(range(10))
    assert [job.round for job in jobs] == [1] * 5 + [2] * 5


def test_equal_prompts_share_a_number_and_a_baseline():
    jobs = plan_jobs(ROWS, ReplayOptions("x", repeat=2))
    assert [job.prompt for job in jobs[:5]] == [1, 2, 3, 1, 2]
    assert [job.index for job in distinct_prompts(jobs)] == [0, 1, 2]


def test_combinations():
    options = ReplayOptions("x", strategies=("per_user", "no_cache"), concurrency=(1, 4))
    assert [combination.label for combination in options.combinations] == [
        "per_user x1", "no_cache x1", "per_user x4", "no_cache x4",
    ]  # fmt: skip
    assert ReplayOptions("x").combinations == [Combination(None, 1)]
    assert ReplayOptions("x", rate=5.0).combinations == [Combination(None, 256)]


@pytest.mark.parametrize(("given", "said"), [
    ({"users": 0}, "--users 0: must be between 1"),
    ({"limit": 0}, "--limit 0: must be at least 1"),
    ({"repeat": 0}, "--repeat"),
    ({"max_tokens": 0}, "--max-tokens"),
    ({"concurrency": (1, 0)}, "--concurrency 0"),
    ({"concurrency": (2, 2)}, "the same value twice"),
    ({"rate": 0.0}, "--rate 0"),
    ({"rate": float("nan")}, "--rate nan"),
    ({"cost_per_hour": -1.0}, "--cost-per-hour"),
    ({"seed": 3}, "--seed only matters with --shuffle"),
    ({"judge": "model"}, "--judge model is not available yet"),
    ({"judge": "vibes"}, "must be one of exact, contains, f1, none"),
    ({"strategies": ("mine",)}, "must be one of per_user"),
    ({"resume": "r", "out": "d"}, "leave --out away"),
    ({"target": "localhost:1"}, "must start with http"),
    ({"target": "http://x", "baseline": True}, "--baseline needs semcache"),
    ({"target": "http://x", "strategies": ("per_user",)}, "--strategy needs semcache"),
])  # fmt: skip
def test_options_that_make_no_sense(given, said):
    with pytest.raises(UsageError, match=said):
        ReplayOptions("x", **given)
