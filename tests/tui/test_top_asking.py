"""The prompt line, readonly, help and the screenshot."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from semcache.errors import BusyError
from semcache.tui.requests import RequestTable
from semcache.tui.screenshot import save_screenshot
from tests.tui.fixed_source import FixedSource, receipt
from tests.tui.harness import NARROW, running_top


async def test_an_answer_streams_in_under_its_badge() -> None:
    answer = receipt(40, "semantic", prompt="capital city?", answer="Canberra, of course.", score=0.962,
                     matched="What is the capital of Australia?", ttft=11.3, total=49.6)  # fmt: skip
    async with running_top() as top:
        await top.press("a", *"capital city?", "enter")
        await top.until("▸ asking  capital city?")
        assert top.source.asked == [{"messages": [{"role": "user", "content": "capital city?"}], "model": "mini"}]
        top.source.parts.put_nowait(answer["cache"])
        top.source.parts.put_nowait("Canberra,")
        await top.until("◕ semantic", "Canberra,")
        assert "of course" not in top.text
        top.source.parts.put_nowait(" of course.")
        top.source.parts.put_nowait(answer)
        top.source.parts.put_nowait(None)
        await top.until("Canberra, of course.", "score 0.962 · first token 11.3 ms · total 49.6 ms")
        assert "81 of 81 prompt tokens reused" in top.text
        await top.until(condition=lambda: top.source.num_streams_closed == 1)
        await top.matches_snapshot("answer-120x32")
        await top.press("escape")
        assert not top.app.screen.query_one("#prompt", Input).has_focus
        assert "Canberra, of course." in top.text
        await top.press("escape")
        assert "Canberra, of course." not in top.text


async def test_an_error_is_one_line() -> None:
    async with running_top(size=NARROW) as top:
        await top.press("a", *"hello", "enter")
        top.source.parts.put_nowait("half an")
        await top.until("half an")
        top.source.parts.put_nowait(BusyError("the queue is full (64 waiting);\ntry again in 3 s"))
        await top.until("✗ failed  the queue is full (64 waiting); try again in 3 s")
        assert "half an" not in top.text


async def test_closing_the_answer_cancels_it() -> None:
    async with running_top() as top:
        await top.press("a", *"hello", "enter")
        top.source.parts.put_nowait("half an")
        await top.until("half an")
        await top.press("escape", "escape")
        await top.until(condition=lambda: top.source.num_streams_closed == 1)
        assert "half an" not in top.text


async def test_keys_of_the_table_are_letters_in_the_prompt() -> None:
    async with running_top() as top:
        await top.press("a", *"quaprR/?")
        assert top.app.screen.query_one("#prompt", Input).value == "quaprR/?"
        assert top.app.is_running
        await top.press("escape")
        assert "paused" not in top.text


async def test_readonly_can_not_ask() -> None:
    async with running_top(readonly=True) as top:
        assert "ask ❯" not in top.text
        assert "a Ask" not in top.text
        await top.press("a", "h", "i", "enter")
        assert top.source.asked == []
        await top.press("escape", "question_mark")
        await top.until("Hold the table still")
        assert "Ask the model" not in top.text
        await top.matches_snapshot("help-readonly-120x32")


async def test_help_is_made_from_the_bindings() -> None:
    async with running_top(size=(120, 60)) as top:
        await top.press("question_mark")
        await top.until("Ask the model from here")
        for binding in [*type(top.app).BINDINGS, *type(top.app.screen_stack[0]).BINDINGS]:
            assert (binding.tooltip or binding.description) in top.text
        await top.press("escape")
        assert "Ask the model" not in top.text


async def test_the_command_palette_stays() -> None:
    async with running_top() as top:
        await top.press("ctrl+p")
        await top.until("Search for commands")


async def test_q_quits() -> None:
    async with running_top() as top:
        await top.press("q")
        assert not top.app.is_running
        assert (top.app.return_code or 0) == 0


async def test_ctrl_s_saves_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with running_top() as top:
        await top.press("ctrl+s")
        assert "semantic" in (tmp_path / "semcache-top-20261120-110731.svg").read_text(encoding="utf-8")


async def test_picture_without_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "top.svg"
    await save_screenshot(path, FixedSource(), size=NARROW)
    svg = path.read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert "semantic" in svg


async def test_keys_typed_ahead_belong_to_the_prompt() -> None:
    async with running_top() as top:
        await top.type_ahead("a", *"quaprR")
        await top.until(condition=lambda: top.app.screen.query_one("#prompt", Input).value == "quaprR")


async def test_keys_typed_ahead_belong_to_the_filter() -> None:
    async with running_top() as top:
        await top.type_ahead("slash", *"paris", "enter")
        await top.until(condition=lambda: top.app.screen.query_one(RequestTable).filter.text == "paris")
