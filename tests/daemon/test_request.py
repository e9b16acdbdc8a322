"""What the receipt says of a draft, and what is kept of an error."""

from __future__ import annotations

import pytest

from semcache.daemon.request import (
    CacheOptions,
    Message,
    Outcome,
    Receipt,
    Request,
    RequestState,
    Sampling,
)
from semcache.errors import BusyError


def settled(num_output: int, num_drafted: int, num_accepted: int, outcome: Outcome = Outcome.MISS) -> Receipt:
    receipt = Receipt(outcome, "no_candidate", "per_user", scope="user", prefix_tokens=64, stored=True)
    request = Request(
        id="r", user="u", model="m", messages=(Message("user", "hi"),), prompt_tokens=[1], sampling=Sampling(),
        options=CacheOptions(), publish=lambda event: None, receipt=receipt, output_tokens=[7] * num_output,
        num_drafted=num_drafted, num_draft_accepted=num_accepted,
    )  # fmt: skip
    request.settle_draft()
    assert request.receipt is not None
    return request.receipt


@pytest.mark.parametrize(
    ("num_output", "num_accepted", "outcome"),
    [(10, 5, Outcome.DRAFT), (10, 4, Outcome.PREFIX), (11, 5, Outcome.PREFIX), (11, 6, Outcome.DRAFT),
     (1, 1, Outcome.DRAFT), (0, 0, Outcome.PREFIX), (1, 0, Outcome.PREFIX)],
)  # fmt: skip
def test_half_of_the_completion_makes_a_draft(num_output: int, num_accepted: int, outcome: Outcome) -> None:
    receipt = settled(num_output, 20, num_accepted, Outcome.PREFIX)
    assert receipt.outcome is outcome
    assert (receipt.draft_tokens, receipt.draft_accepted) == (20, num_accepted)
    assert (receipt.prefix_tokens, receipt.scope, receipt.stored) == (64, "user", True)


def test_without_a_donor_the_receipt_stays() -> None:
    assert settled(5, 0, 0) == Receipt(
        Outcome.MISS, "no_candidate", "per_user", scope="user", prefix_tokens=64, stored=True
    )


def test_a_request_without_a_receipt_has_nothing_to_settle() -> None:
    request = Request(
        id="r", user="u", model="m", messages=(Message("user", "hi"),), prompt_tokens=[1], sampling=Sampling(),
        options=CacheOptions(), publish=lambda event: None, num_drafted=3,
    )  # fmt: skip
    request.settle_draft()
    assert request.receipt is None


def test_an_error_is_kept_without_what_it_was_raised_in() -> None:
    request = Request(
        id="r", user="u", model="m", messages=(Message("user", "hi"),), prompt_tokens=[1], sampling=Sampling(),
        options=CacheOptions(), publish=lambda event: None,
    )  # fmt: skip
    try:
        raise BusyError("try again", param="messages", retry_after_s=2) from KeyError("x")
    except BusyError as error:
        request.end(RequestState.FAILED, error)
    kept = request.error
    assert isinstance(kept, BusyError)
    assert (str(kept), kept.message, kept.param, kept.retry_after_s) == ("try again", "try again", "messages", 2)
    assert (kept.__traceback__, kept.__cause__, kept.__context__) == (None, None, None)
