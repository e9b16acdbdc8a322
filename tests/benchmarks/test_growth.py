"""The growth benchmark on caches of a few entries: real rows, real files, real processes, no times asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.growth_cache import Grown, fill, open_store


def test_a_size_is_a_row_and_every_bar_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "growth.json"
    assert growth.main(["--sizes", "24", "--lookups", "3", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["schema"] == "semcache.bench.growth/1"
    assert [row["size"] for row in found["rows"]] == [24]
    assert all(row[name] > 0 for row in found["rows"] for name in ("open_ms", "lookup_ms_p50", "exact_ms_p50"))
    said = capsys.readouterr().out
    assert sum("bar <=" in line for line in said.splitlines()) == len(found["ratios"]) == 5


def test_what_is_filled_can_be_found_and_nothing_else_is(tmp_path: Path) -> None:
    fill(tmp_path, 0, 20)
    fill(tmp_path, 20, 26)
    store = open_store(tmp_path)
    try:
        assert (store.num_entries(), store.tier_status()["disk"].items) == (26, 26)
        grown = Grown(store, 26)
        for _ in range(20):  # each of them checks what it finds
            assert min(grown.lookup_ms(), grown.exact_ms(), grown.prefix_ms()) >= 0
        with pytest.raises(AssertionError):
            Grown(store, 10**6).exact_ms()  # far more than there are
    finally:
        store.close()


def test_ratios_compare_the_largest_size_with_the_smaller_ones() -> None:
    small = growth.Row(
        size=10, put_entry_ms=1, put_block_ms=1, open_ms=5, first_lookup_ms=1, lookup_ms_p50=1, lookup_ms_p99=2,
        exact_ms_p50=0.1, prefix_ms_p50=0.2, memory_mb=1, memory_per_entry_bytes=1000, disk_per_entry_bytes=1,
    )  # fmt: skip
    large = replace(small, size=100, open_ms=3000, exact_ms_p50=0.3, prefix_ms_p50=0.3, lookup_ms_p50=6)
    ratios = growth.ratios_of([small, large])
    assert ratios == pytest.approx(
        {"exact_growth": 3, "prefix_growth": 1.5, "memory_growth": 1, "open_s": 3, "lookup_ms": 6}
    )
    assert [line.split()[-1] for line in growth.bars(ratios)] == ["missed", "met", "met", "missed", "met"]
    alone = growth.ratios_of([small])
    assert alone["exact_growth"] is None
    assert growth.bars(alone)[0].endswith("not measured")


@pytest.mark.parametrize("wrong", [["--sizes", "1"], ["--sizes", "x"], ["--lookups", "0"]])
def test_a_wrong_command_line_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        growth.main(wrong)
    assert "error" in capsys.readouterr().err
