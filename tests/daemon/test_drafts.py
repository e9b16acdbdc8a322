"""Drafts of requests under way: who may have any, who is asked for more, and whose tokens the receipt names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from semcache.daemon.drafts import OPENING_TOKENS, Drafts
from semcache.daemon.request import CacheMode, CacheOptions, Donor, Message, Outcome, Receipt, Request, Sampling

VOCAB, EOS = 100, (2,)


def request_with(mode: CacheMode = CacheMode.AUTO, **fields: Any) -> Request:
    request = Request(
        id="r", user="os:1", model="m", messages=(Message("user", "?"),), prompt_tokens=[50, 51, 52],
        sampling=Sampling(), options=CacheOptions(mode=mode), publish=lambda event: None, **fields,
    )  # fmt: skip
    request.receipt = Receipt(Outcome.MISS, "policy:evidence", "per_user", score=0.9, entry_id="e_near")
    return request


def begun(request: Request, *, enabled: bool = True) -> Drafts:
    drafts = Drafts(enabled=enabled)
    drafts.allow(request)
    drafts.begin(request, VOCAB, EOS)
    return drafts


def donor(*tokens: int, **about: Any) -> Donor:
    return Donor(tokens, True, **about)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("mode", list(CacheMode))
def test_a_request_that_may_have_none_has_none(mode: CacheMode, enabled: bool) -> None:
    sought: list[Sequence[int]] = []
    request = request_with(mode, donor=donor(1, 3), more_donors=(donor(1, 4),), seek_donors=sought.append)
    drafts = begun(request, enabled=enabled)
    allowed = enabled and mode.allows_draft
    assert (request.donor is not None) == bool(request.more_donors) == (request.seek_donors is not None) == allowed
    drafts.offer(request, [donor(1, 3, 4, 5, 6, 7)], VOCAB, EOS)
    request.output_tokens = [1, 3, 4]
    assert (drafts.propose(request, 50, is_alone=True) is not None) == allowed
    assert sought == []


def test_more_are_asked_for_once_when_the_answer_has_begun() -> None:
    sought: list[Sequence[int]] = []
    request = request_with(seek_donors=lambda tokens: sought.append(list(tokens)))
    drafts = begun(request)
    for num in range(1, 8):
        request.output_tokens = list(range(10, 10 + num))
        assert not drafts.propose(request, 50, is_alone=True)
        assert len(sought) == (num >= OPENING_TOKENS)
    assert sought == [[10, 11, 12]]


def test_nobody_else_is_asked_for_while_the_donor_is_right() -> None:
    sought: list[Sequence[int]] = []
    request = request_with(donor=donor(*range(10, 20)), seek_donors=sought.append)
    drafts = begun(request)
    request.output_tokens = [10]
    assert drafts.propose(request, 50, is_alone=True)
    proposal = drafts.proposal(request)
    assert proposal.tokens == tuple(range(11, 20))
    drafts.learn(request, 9, is_tied=False)
    assert request.accepted_donor == request.donor
    assert sought == []


def test_a_proposal_waits_for_its_verification_whatever_is_offered() -> None:
    request = request_with(donor=donor(10, 11, 12))
    drafts = begun(request)
    request.output_tokens = [10]
    assert drafts.propose(request, 50, is_alone=True)
    drafts.offer(request, [donor(10, 13, 14)], VOCAB, EOS)
    assert not drafts.propose(request, 50, is_alone=True)
    assert drafts.proposal(request).tokens == (11, 12)


def test_what_the_model_cannot_say_is_cut_off() -> None:
    request = request_with(more_donors=(donor(10, 11, VOCAB, 12), donor(VOCAB), donor(2), donor(10, 11, 13, -1)))
    drafts = begun(request)
    drafts.offer(request, [donor(10, 11, 14, 2, 15)], VOCAB, EOS)
    request.output_tokens = [10, 11]
    assert drafts.propose(request, 50, is_alone=True)
    assert drafts.proposal(request).tokens == (13,)


def test_a_donor_longer_than_the_room_is_proposed_in_part() -> None:
    request = request_with(donor=donor(*range(10, 90)))
    drafts = begun(request)
    request.output_tokens = [10]
    assert drafts.propose(request, 5, is_alone=True)
    assert len(drafts.proposal(request).tokens) == 5
    request.output_tokens = [10, 11]
    assert not drafts.propose(request, 1, is_alone=True)


def test_the_receipt_names_the_donor_whose_tokens_were_accepted() -> None:
    nearest = donor(10, 90, 91, entry_id="e_near", scope="user", prompt="near", score=0.9, age_s=1.0)
    alike = donor(10, 11, 12, 13, 14, entry_id="e_alike", scope="global", prompt="other words", age_s=5.0)
    request = request_with(donor=nearest)
    drafts = begun(request)
    drafts.offer(request, [alike], VOCAB, EOS)
    request.num_drafted = request.num_draft_accepted = 1  # the first token, judged by the prompt's own logits
    request.output_tokens = [10]
    assert drafts.propose(request, 50, is_alone=True)
    drafts.learn(request, 0, is_tied=False)
    request.output_tokens = [10, 11]
    assert drafts.propose(request, 50, is_alone=True)
    drafts.learn(request, 3, is_tied=False)
    request.output_tokens, request.num_drafted, request.num_draft_accepted = [10, 11, 12, 13, 14], 6, 4
    request.settle_draft()
    assert request.receipt == Receipt(
        Outcome.DRAFT, "policy:evidence", "per_user", scope="global", score=None, entry_id="e_alike",
        matched_prompt="other words", entry_age_s=5.0, draft_tokens=6, draft_accepted=4,
    )  # fmt: skip


def test_an_answer_of_one_token_names_its_donor_too() -> None:
    request = request_with(donor=donor(10, 11, entry_id="e_first", scope="user", prompt="first", score=0.8))
    begun(request)
    request.output_tokens, request.num_drafted, request.num_draft_accepted = [10], 1, 1
    request.settle_draft()
    assert request.receipt is not None
    assert (request.receipt.outcome, request.receipt.entry_id, request.receipt.scope) == (
        Outcome.DRAFT,
        "e_first",
        "user",
    )


def test_where_less_than_half_was_accepted_the_receipt_names_what_the_look_up_named() -> None:
    request = request_with(donor=donor(10, 11, entry_id="e_other"))
    begun(request)
    request.accepted_donor = request.donor
    request.output_tokens, request.num_drafted, request.num_draft_accepted = [10, 11, 12, 13, 14], 2, 2
    request.settle_draft()
    assert request.receipt is not None
    assert (request.receipt.outcome, request.receipt.entry_id, request.receipt.draft_accepted) == (
        Outcome.MISS, "e_near", 2,
    )  # fmt: skip


def test_what_ended_is_forgotten_and_offers_for_it_are_nothing() -> None:
    request = request_with(donor=donor(10, 11, 12))
    drafts = begun(request)
    request.output_tokens = [10]
    assert drafts.propose(request, 50, is_alone=True)
    drafts.forget(request)
    drafts.offer(request, [donor(10, 11)], VOCAB, EOS)
    assert not drafts.propose(request, 50, is_alone=True)
    assert (drafts._drafts, drafts._proposals) == ({}, {})
    drafts.forget(request)
