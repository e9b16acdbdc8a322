"""`top --once`, pipes and JSON; and the numbers themselves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from semcache.errors import DaemonUnreachableError
from semcache.tui import units
from semcache.tui.app import rate_between, run_top
from semcache.tui.once import print_once
from semcache.tui.request_log import RequestLog
from tests.tui.fixed_source import FixedSource, receipt, semantic, status
from tests.tui.harness import SNAPSHOTS, UPDATE


async def test_plain_text() -> None:
    out = io.StringIO()
    await print_once(FixedSource(), out, as_json=False)
    path = SNAPSHOTS / "once.txt"
    if UPDATE:
        path.write_text(out.getvalue(), encoding="utf-8")
    assert out.getvalue() == path.read_text(encoding="utf-8")


async def test_plain_text_before_anything_was_asked() -> None:
    source = FixedSource([])
    source.stats_now["users"] = []
    out = io.StringIO()
    await print_once(source, out, as_json=False)
    assert 'no requests yet; ask with: semcache ask "hello"' in out.getvalue()


async def test_a_suspended_scope_is_a_warning() -> None:
    source, out = FixedSource(), io.StringIO()
    source.status_now = status(semantic=semantic(suspended=["global"]), warnings=["the disk is full"])
    await print_once(source, out, as_json=False)
    assert "\nwarning: semantic off for global: " in out.getvalue()
    assert "\nwarning: the disk is full\n" in out.getvalue()


async def test_json() -> None:
    source, out = FixedSource(), io.StringIO()
    await print_once(source, out, as_json=True)
    assert json.loads(out.getvalue()) == {
        "status": json.loads(json.dumps(source.status_now)),
        "stats": json.loads(json.dumps(source.stats_now)),
        "requests": source.requests_now,
    }


@pytest.mark.parametrize("once", [True, False], ids=["once", "pipe"])
def test_without_a_daemon_it_raises(tmp_path: Path, once: bool) -> None:
    """Under pytest stdout is no terminal, so both are the same."""
    with pytest.raises(DaemonUnreachableError):
        run_top(socket=tmp_path / "no.sock", url=None, once=once, as_json=False, interval_s=1.0, readonly=False)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (units.ms(None), "–"), (units.ms(0.04), "0.0 ms"), (units.ms(99.9), "99.9 ms"), (units.ms(99.96), "100 ms"),
        (units.ms(9999.4), "9,999 ms"), (units.ms(9999.6), "10.0 s"), (units.seconds(3599), "3,599 s"),
        (units.seconds(7200), "2h00m"), (units.duration(59.9), "59s"), (units.duration(60), "1m00s"),
        (units.duration(-3), "0s"), (units.duration(200_000), "2d7h"), (units.size(0), "0 MB"),
        (units.size(1500), "2 kB"), (units.size(2_500_000), "2.5 MB"), (units.size(123_456_789_000), "123 GB"),
        (units.used_of(1_900_000_000, 4_000_000_000), "1.9/4.0 GB"),
        (units.used_of(135_000, 2_500_000_000), "135 kB/2.5 GB"), (units.percent(None), "–"),
        (units.percent(1.0), "100.0 %"), (units.share(0, 0), None), (units.one_line("a\n b\t c"), "a b c"),
    ],
)  # fmt: skip
def test_units(said: str | None, expected: str | None) -> None:
    assert said == expected


def test_bars_and_columns() -> None:
    assert units.bar(0.0, 6, "").plain == "──────"
    assert units.bar(0.001, 6, "").plain == "╸─────"
    assert units.bar(0.5, 6, "").plain == "━━━───"
    assert units.bar(7.0, 6, "").plain == "━━━━━━"
    assert units.columns([0, 1, 4, 16], 5, 2) == ["    █", "  ▁▄█"]
    assert units.columns([], 3, 1) == ["   "]


def test_rates_survive_a_restart() -> None:
    before, after = status(outcomes={"exact": 10}), status(outcomes={"exact": 13, "miss": 1})
    assert rate_between(before, after, 2.0) == 2.0
    assert rate_between(before, {**after, "uptime_s": before["uptime_s"] + 8}, 2.0) == 0.5
    assert rate_between(before, status(outcomes={"exact": 2}, pid=1), 1.0) == 2.0


def test_the_log_keeps_the_newest() -> None:
    log = RequestLog(max_requests=3)
    log.merge([receipt(number) for number in range(10)])
    assert sorted(log.by_id) == ["req_007", "req_008", "req_009"]
