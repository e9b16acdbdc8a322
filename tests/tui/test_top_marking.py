"""`w`: one press asks, the second marks; only what was stored for another wording can be wrong."""

from __future__ import annotations

import pytest

from semcache.errors import NotFoundError
from tests.tui.fixed_source import FixedSource, receipt
from tests.tui.harness import NARROW, running_top


@pytest.mark.parametrize("in_detail", [False, True], ids=["table", "detail"])
async def test_two_presses_mark(in_detail: bool) -> None:
    async with running_top() as top:
        await top.press("down", *(["enter"] if in_detail else []))  # the semantic hit
        await top.press("w")
        await top.until("mark wrong?", "press w again")
        assert top.source.marked == []
        await top.press("w")
        await top.until("marked wrong", "e_01KA3 is removed")
        assert top.source.marked == [("req_007", "wrong")]


async def test_another_request_is_asked_about_anew() -> None:
    other = receipt(9, "exact", prompt="The capital city?", reason="alias", matched="What is the capital?")
    hit = receipt(8, "semantic", prompt="capital city?", matched="What is the capital?")
    async with running_top(FixedSource([other, hit])) as top:
        await top.press("w")
        await top.until("press w again", "“The capital city?”")
        await top.press("down", "w")
        await top.until("“capital city?”")
        assert top.source.marked == []
        await top.press("w")
        await top.until(condition=lambda: top.source.marked == [("req_008", "wrong")])


@pytest.mark.parametrize("row", [0, 2, 3, 4, 5, 6], ids=["running", "exact", "draft", "prefix", "miss", "failed"])
async def test_what_the_model_computed_cannot_be_marked(row: int) -> None:
    async with running_top() as top:
        await top.press(*["down"] * row, "w", "w")
        await top.until("only an answer stored for another")
        assert "press w again" not in top.text
        assert top.source.marked == []


async def test_a_refusal_is_told() -> None:
    source = FixedSource()
    source.marking = NotFoundError("no request 'req_007' is remembered")
    async with running_top(source) as top:
        await top.press("down", "w", "w")
        await top.until("not marked", "no request 'req_007' is remembered")


async def test_what_was_not_done_is_told() -> None:
    source = FixedSource()
    source.marking = {
        "request": "req_007", "entry": "e_01KA3", "verdict": "wrong", "removed": False, "negative_pair": False,
    }  # fmt: skip
    async with running_top(source) as top:
        await top.press("down", "w", "w")
        await top.until("noted, but e_01KA3 may be served again")


async def test_users_in_front_hide_the_request() -> None:
    async with running_top(size=NARROW) as top:
        await top.press("down", "u", "w", "w")
        assert top.source.marked == []
        assert "press w again" not in top.text


async def test_readonly_marks_nothing() -> None:
    async with running_top(readonly=True) as top:
        await top.press("down", "w", "w", "enter")
        await top.until("y copy JSON · esc back")
        await top.press("w", "w")
        assert top.source.marked == []
        assert "w wrong" not in top.text
        await top.press("escape", "question_mark")
        await top.until("Show only requests that match")
        assert "as wrong" not in top.text
