"""What the header, the banner and the panels say."""

from __future__ import annotations

import pytest

from semcache.errors import DaemonUnreachableError, ProtocolError
from semcache.tui.panels import semantic as semantic_line
from tests.tui.fixed_source import FixedSource, latency, receipt, semantic, stats, status
from tests.tui.harness import NARROW, WIDE, running_top


@pytest.mark.parametrize("size", [WIDE, NARROW, (160, 45), (80, 18)], ids=lambda size: "{}x{}".format(*size))
async def test_the_whole_screen(size: tuple[int, int]) -> None:
    async with running_top(size=size) as top:
        await top.matches_snapshot("overview-{}x{}".format(*size))


async def test_shares_and_the_two_sums() -> None:
    async with running_top() as top:
        shares = {"exact": "41.2 %", "semantic": "12.1 %", "draft": "9.0 %", "prefix": "18.7 %", "miss": "19.0 %"}
        assert {outcome: top.row(f"{outcome:<8} ━")[24:33].strip() for outcome in shares} == shares
        assert "answer hits ●◕ 53.3 %   compute hits ●◕◑◔ 81.0 %" in top.text
        assert "3.1 ms   8.4 ms     9.8 ms" in top.row("exact    ━")  # first token p50 and p95, total p50


async def test_a_poll_moves_the_numbers_and_the_throughput() -> None:
    async with running_top() as top:
        top.source.status_now = status(outcomes={**status()["outcomes"], "exact": 472})
        await top.poll()
        await top.until("1.0 req/s", "44.5 %")


async def test_unknown_is_a_dash_and_wrong_hits_are_not_claimed() -> None:
    source = FixedSource([])
    source.status_now = status(outcomes={}, latency={})
    async with running_top(source) as top:
        assert "–" in top.row("● exact")
        assert "0.0 %" not in top.row("● exact")
        assert "not audited" in top.text
        measured = {"audits": 150, "wrong": 2, "rate": 0.0133, "ci95": (0.0016, 0.0473)}
        source.stats_now = stats(wrong_hits=measured)
        source.status_now = status(latency={"exact": latency(1, 12_345.0, 0.04, 99.96)})
        await top.poll()
        await top.until("2/150 (0.16–4.7 %)", "12.3 s", "0.0 ms", "100 ms")


async def test_header_follows_the_model() -> None:
    async with running_top() as top:
        assert "● ready · mini fp32 · ctx 8,192 · unloads in 9m41s" in top.text
        top.source.push_model(state="loading", stage="weights", progress=0.63, unloads_in_s=None)
        await top.until("◐ loading weights 63 %")
        top.source.push_model(state="unloaded", unloads_in_s=None)
        await top.until("○ unloaded")


async def test_daemon_goes_away_and_comes_back() -> None:
    async with running_top() as top:
        top.source.go_away()
        await top.poll()
        await top.until("reconnecting… the daemon went away; what you see is from 11:07:31")
        assert "41.2 %" in top.text
        assert "Summarise the plot" in top.text
        top.source.error = None
        top.source.status_now = status(pid=9999, uptime_s=1.0)
        top.source.requests_now = [receipt(50, "exact", prompt="asked after the restart")]
        await top.poll()
        await top.until("pid 9999", "asked after the restart")
        assert "reconnecting" not in top.text
        # What was being decoded died with the old daemon; what was finished stays.
        assert "? lost" in top.row("Summarise the plot")
        assert "◕ semantic" in top.row("capital city of aus")
        top.source.push(receipt(51, prompt="and events flow again", state="queued", ttft=None, total=None))
        await top.until("and events flow again")


async def test_without_a_daemon_it_waits_for_one() -> None:
    source = FixedSource()
    source.error = DaemonUnreachableError("no daemon answers")
    async with running_top(source) as top:
        await top.until("daemon not running — start it with `semcache daemon start`", "no daemon yet")
        source.error = None
        await top.poll()
        await top.until("● ready")
        assert "daemon not running" not in top.text


async def test_other_errors_and_warnings_are_shown_as_they_are() -> None:
    source = FixedSource()
    source.error = ProtocolError("the daemon speaks protocol 2; restart it: `semcache daemon restart`")
    async with running_top(source) as top:
        await top.until("the daemon speaks protocol 2")
        source.error = None
        source.status_now = status(warnings=["port 8642 is taken: socket only"])
        await top.poll()
        await top.until("⚠ port 8642 is taken: socket only")


async def test_resize() -> None:
    async with running_top() as top:
        assert "Users · all time" in top.text
        await top.pilot.resize_terminal(*NARROW)
        await top.until(condition=lambda: len(top.text.splitlines()) == 24)
        await top.matches_snapshot("overview-80x24")
        await top.pilot.resize_terminal(*WIDE)
        await top.until("Users · all time")
        await top.matches_snapshot("overview-120x32")


async def test_users_in_place_of_requests() -> None:
    async with running_top(size=NARROW) as top:
        assert "os:1000/alice" not in top.text
        await top.press("u")
        await top.until("▸ os:1000/alice", "64.2 %")
        assert "Requests" not in top.text
        await top.press("down", "enter")
        await top.until("filter user:os:1000/bob (3 of 8)")


async def test_how_far_other_wordings_are_trusted() -> None:
    async with running_top() as top:
        assert "semantic verified · 0/38 audited (0–9.2 %) · 3 due" in top.text
        top.source.status_now = status(semantic=semantic(policy="off"))
        await top.poll()
        await top.until("─ semantic off ─")


@pytest.mark.parametrize(
    ("width", "changes", "said"),
    [
        (90, {}, "semantic verified · budgets 1 %, 2 % · 0/38 audited (0–9.2 %) · 3 due"),
        (50, {}, "semantic verified · 0/38 audited (0–9.2 %) · 3 due"),
        (46, {}, "semantic verified · 0/38 (0–9.2 %) · 3 due"),
        (1, {}, "semantic verified · 0/38 (0–9.2 %)"),
        (90, {"audits": 0, "ci95": None, "rate": None, "due_audits": 0},
         "semantic verified · budgets 1 %, 2 % · not audited yet"),
        (90, {"policy": "threshold", "wrong": 5, "ci95": (0.05, 0.3)},
         "semantic ≥ 0.95 · 5/38 audited (5–30 %) · 3 due"),
    ],
)  # fmt: skip
def test_the_semantic_line_fits(width: int, changes: dict[str, object], said: str) -> None:
    assert semantic_line(semantic(**changes), width) == said


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=lambda size: "{}x{}".format(*size))
async def test_a_suspended_scope_is_told_before_any_warning(size: tuple[int, int]) -> None:
    source = FixedSource()
    source.status_now = status(warnings=["port 8642 is taken"], semantic=semantic(suspended=["os:1000/bob", "global"]))
    async with running_top(source, size=size) as top:
        await top.until("⚠ semantic off for os:1000/bob, global: audits found too many wrong")
        source.status_now = status(warnings=["port 8642 is taken"])
        await top.poll()
        await top.until("⚠ port 8642 is taken")
        assert "semantic off for" not in top.text
