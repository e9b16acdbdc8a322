"""The request table: life of a request, filter, order, selection, pause, details."""

from __future__ import annotations

import json

import pytest
from textual.widgets import Input

from semcache.tui.candidates import candidates
from semcache.tui.detail import detail, word_diff
from semcache.tui.requests import RequestTable
from tests.tui.fixed_source import FixedSource, candidate, day_of_requests, explanation, receipt, semantic, status
from tests.tui.harness import NARROW, Top, running_top


def table(top: Top) -> RequestTable:
    return top.app.screen.query_one(RequestTable)


def keys(top: Top) -> list[str]:
    return list(table(top).row_keys)


async def test_empty_state_teaches() -> None:
    async with running_top(FixedSource([])) as top:
        await top.until("no requests yet", 'in another terminal: semcache ask "hello"')
        await top.matches_snapshot("empty-120x32")


async def test_a_running_request_becomes_finished() -> None:
    async with running_top() as top:
        for state in ("queued", "matching", "prefilling", "decoding"):
            top.source.push(receipt(20, prompt="How deep is the sea?", state=state, ttft=None, total=None, tokens=0))
            await top.until(f"▸ {state:<10}", "How deep is the sea?")
        assert "…" in top.row("How deep is the sea?")[-12:]
        top.source.push(receipt(20, "draft", prompt="How deep is the sea?", state="finished", drafted=(10, 9)))
        await top.until("◑ draft", condition=lambda: "402 ms" in top.row("How deep is the sea?"))
        # A poll that was answered earlier than it arrives does not turn time back.
        top.source.requests_now = [receipt(20, prompt="How deep is the sea?", state="decoding")]
        await top.poll()
        assert "◑ draft" in top.row("How deep is the sea?")


async def test_a_failed_request_says_why() -> None:
    async with running_top(size=(160, 45)) as top:
        line = top.row("Explain quantum")
        assert "✗ failed" in line
        assert "EngineError: out of memory at step 3" in line
        assert "Explain quantum tunnelling to a child 🐳" in line


async def test_filter() -> None:
    async with running_top() as top:
        await top.press("slash", *"outcome:miss")
        await top.until("filter outcome:miss (2 of 8)")
        assert keys(top) == ["req_003", "req_001"]
        await top.press("enter")
        assert "filter outcome:miss" in top.text
        assert table(top).has_focus
        await top.press("escape")
        assert len(keys(top)) == 8
        filters = {"user:BOB": 3, "user:bob outcome:mi": 1, "capital of": 4, "AUSTRALIA?": 4, "outcome:running": 1,
                   "entity": 1, "zebra": 0}  # fmt: skip
        for text, num_rows in filters.items():
            top.app.screen.query_one("#filter", Input).value = text
            await top.until(condition=lambda n=num_rows: len(keys(top)) == n)
        await top.until("nothing matches “zebra” — escape clears the filter")


async def test_order_keeps_the_selection() -> None:
    async with running_top() as top:
        newest_first = keys(top)
        assert newest_first == sorted(newest_first, reverse=True)
        await top.press("down", "down")
        assert table(top).cursor_key == "req_006"
        await top.press("r")
        assert keys(top) == newest_first[::-1]
        assert "time▴" in top.text
        assert table(top).cursor_key == "req_006"
        assert "▸" in top.row("= identical")
        await top.press("r", "full_stop", "full_stop")
        assert "score▾" in top.text
        assert keys(top)[:3] == ["req_007", "req_005", "req_003"]  # unknown scores come last
        await top.press("r")
        assert keys(top)[:3] == ["req_003", "req_005", "req_007"]
        assert table(top).cursor_key == "req_006"
        await top.press("comma", "comma", "comma")
        assert "total▴" in top.text
        # A new row on top moves neither the selection nor the order.
        top.source.push(receipt(30, "exact", prompt="newest of all", total=1.0))
        await top.until("newest of all")
        assert table(top).cursor_key == "req_006"


async def test_the_first_row_is_followed_until_another_is_chosen() -> None:
    async with running_top() as top:
        top.source.push(receipt(30, prompt="newest of all"))
        await top.until("▸ 11:06:21", "newest of all")
        assert table(top).cursor_key == "req_030"


async def test_selection_stays_on_its_line_in_a_scrolled_table() -> None:
    many = [receipt(number, "exact", prompt=f"prompt {number}") for number in range(60, 0, -1)]
    async with running_top(FixedSource(many), size=NARROW) as top:
        await top.press(*["down"] * 15)
        line = next(i for i, text in enumerate(top.text.splitlines()) if "▸ " in text)
        for number in range(70, 75):
            top.source.push(receipt(number, "exact", prompt=f"prompt {number}"))
        await top.until(condition=lambda: len(keys(top)) == 65)
        await top.until("▸ 11:06:36")
        assert "prompt 45" in top.text.splitlines()[line]
        await top.press("end")
        assert "prompt 1 " in top.row("▸ ")
        await top.press("g")
        assert "prompt 74" in top.row("▸ ")


async def test_pause_holds_the_table() -> None:
    async with running_top() as top:
        await top.press("p")
        top.source.push(receipt(30, prompt="while paused"))
        await top.until("paused, 1 new")
        assert "while paused" not in top.text
        await top.press("r")
        assert "while paused" not in top.text
        await top.press("p")
        await top.until("while paused")
        assert "paused," not in top.text


async def test_click_on_a_header_sorts_and_a_double_click_opens() -> None:
    async with running_top() as top:
        row = next(i for i, text in enumerate(top.text.splitlines()) if "matched or reason" in text)
        column = top.text.splitlines()[row].index("score")
        await top.pilot.click(offset=(column + 1, row))
        await top.until("score▾")
        await top.pilot.click(offset=(column, row + 3), times=2)
        await top.until("Request · ")


async def test_details() -> None:
    async with running_top() as top:
        await top.press("down", "down", "down", "enter")
        await top.until("Request · 11:05:56")
        await top.matches_snapshot("detail-draft-120x32")
        await top.press("y")
        assert json.loads(top.app.clipboard)["id"] == "req_005"
        await top.press("escape")
        await top.until("Requests")
        assert table(top).cursor_key == "req_005"


async def test_details_say_what_was_considered() -> None:
    async with running_top(size=(120, 45)) as top:
        await top.press("down", "down", "down", "enter")
        await top.until("considered", "0.951  p 0.412", "refused: the prompts name different things · differs in names")
        assert "What is the capital of Australia?" in top.row("p 0.412")
        assert "user scope: learning · 0/22 audited (0–15 %)" in top.text
        await top.press("escape", "up", "enter")  # nothing is remembered of that one
        await top.until("the identical request was answered before")
        assert "considered" not in top.text


async def test_details_of_a_running_request_go_on() -> None:
    async with running_top(size=NARROW) as top:
        await top.press("enter")
        await top.until("answer so far", "A captain")
        await top.matches_snapshot("detail-running-80x24")
        done = day_of_requests()[0]
        done["state"], done["answer"] = "finished", "A captain hunts a whale."
        top.source.push(done)
        await top.until("A captain hunts a whale.")
        assert "answer so far" not in top.text


async def test_the_score_stands_beside_a_fixed_threshold() -> None:
    async with running_top() as top:
        top.source.status_now = status(semantic=semantic(policy="threshold"))
        await top.poll()
        await top.press("down", "enter")
        await top.until("0.962  0.8 ├", "threshold 0.950")


async def test_what_was_considered_comes_when_the_request_ends() -> None:
    async with running_top(size=(120, 45)) as top:
        top.source.explanations["req_008"] = explanation(candidate(0.93, "What is Moby Dick about?", p_correct=0.9))
        await top.press("enter")
        await top.until("answer so far")
        assert "considered" not in top.text
        done = day_of_requests()[0]
        done["state"] = "finished"
        top.source.push(done)
        await top.until("considered", "What is Moby Dick about?")


@pytest.mark.parametrize("width", [30, 60, 200])
def test_candidates_fit_their_width(width: int) -> None:
    rows = [
        candidate(0.99, "short", verdict="served", reason="similar", p_correct=0.995),
        candidate(0.9, "a very long prompt " * 20, reason="policy:number", features={"number": 1.0, "entity": 1.0}),
    ]
    said = candidates(explanation(*rows, evidence=[]), width)
    assert max(len(line) for line in said.plain.splitlines()) <= width
    words = " ".join(said.plain.split())
    assert "✔ 0.990 p 0.995 short" in words
    assert "served: a differently worded prompt is trusted to mean the same" in words
    assert "refused: the prompts name different numbers · differs in numbers, names" in words


def test_no_candidates_take_no_room() -> None:
    assert candidates(explanation(), 80).plain == ""
    assert "considered" not in detail(receipt(1), None, 80, explanation()).plain


def test_word_diff_marks_both_sides() -> None:
    asked, matched = word_diff("capital city of australia?", "What is the capital of Australia?")
    assert asked.plain == "capital {+city+} of {+australia?+}"
    assert matched.plain == "[-What is the-] capital of [-Australia?-]"


def test_details_without_anything_known() -> None:
    bare = receipt(1, state="queued", ttft=None, total=None, tokens=0, answer="")
    for name in list(bare["timing_ms"]):
        bare["timing_ms"][name] = None  # type: ignore[literal-required]
    said = detail(bare, None, 60).plain
    assert "nothing yet" in said
    assert "no stored prompt is near this one" in said
