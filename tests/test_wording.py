"""The sentences: every reason the code gives has one, and figures are said without digits that tell nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from semcache import wording
from semcache.daemon.cache import features
from semcache.wire.status import WrongHits
from tests.cli.fake_daemon import CANDIDATE, RECEIPT

DAEMON = Path(__file__).resolve().parent.parent / "semcache" / "daemon"


def test_every_reason_of_the_code_has_a_sentence() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in DAEMON.rglob("*.py"))
    given_reasons = set(re.findall(r'"(policy:[a-z_]+)"', sources))
    given_reasons |= set(re.findall(r'reason(?:: str)? ?= ?"([a-z_]+)"', sources))
    assert "policy:threshold" in given_reasons
    assert given_reasons <= set(wording.REASONS)


def test_every_difference_has_a_word_and_a_sentence() -> None:
    prompts = (("Is it 5?", "Is it 6?"), ("Is it?", "Is it not?"), ("Where is Rome?", "Where is Oslo?"))
    for first, second in prompts:
        for name in features.differences(first, second):
            assert name in wording.DIFFERENCES
            assert f"policy:{name}" in wording.REASONS
    assert {f"policy:{name}" for name in wording.DIFFERENCES} <= set(wording.REASONS)


def test_unknown_reasons_are_shown_as_they_are() -> None:
    assert wording.reason_words("policy:moon") == "refused by the policy: moon"
    assert wording.reason_words("full_moon") == "full_moon"


def test_a_trusted_candidate_that_lost_is_not_called_wrong() -> None:
    assert wording.verdict_words(CANDIDATE) == wording.REASONS["similar"]
    assert wording.verdict_words({**CANDIDATE, "verdict": "refused"}) == "trusted too, but not needed"
    assert wording.verdict_words({**CANDIDATE, "verdict": "refused", "reason": "policy:order"}).startswith("the same")


@pytest.mark.parametrize(
    ("outcome", "reason", "expected"),
    [("semantic", "similar", True), ("exact", "alias", True), ("exact", "identical", False), ("draft", "x", False)],
)
def test_only_another_wording_can_be_wrong(outcome: str, reason: str, expected: bool) -> None:
    assert wording.is_other_wording({**RECEIPT["cache"], "outcome": outcome, "reason": reason}) is expected


def test_differing_names_only_what_differs() -> None:
    assert wording.differing({"number": 1.0, "negation": 0.0, "distance": -3.0, "overlap": 0.7}) == ["numbers"]
    assert wording.differing({}) == []


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0 %"), (0.0004, "0.04 %"), (0.0025, "0.25 %"), (0.0099, "0.99 %"), (0.01, "1 %"), (0.07, "7 %"),
     (0.0473, "4.7 %"), (0.0999, "10 %"), (0.128, "13 %"), (1.0, "100 %")],
)  # fmt: skip
def test_shares(share: float, said: str) -> None:
    assert wording.percent(share) == said


@given(st.floats(0, 1))
@example(0.10546875)
def test_a_share_is_said_to_within_a_twentieth_of_it(share: float) -> None:
    said = float(wording.percent(share).removesuffix(" %")) / 100
    assert abs(said - share) <= max(0.05 * share, 1e-12)


def test_estimates() -> None:
    wrong: WrongHits = {"audits": 0, "wrong": 0, "rate": None, "ci95": (0.0, 1.0)}
    assert wording.estimate(wrong) == wording.NOT_AUDITED
    assert wording.short_estimate(wrong) == "not audited"
    wrong = {"audits": 38, "wrong": 0, "rate": 0.0, "ci95": (0.0, 0.092)}
    assert wording.estimate(wrong) == "0/38 audited (0–9.2 %)"
    assert wording.short_estimate(wrong) == "0/38 (0–9.2 %)"
    assert wording.estimate({**wrong, "ci95": None}) == "0/38 audited"
