"""The folder of a run: found by name, never overwritten, readable after a crash."""

from __future__ import annotations

import csv
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from semcache.errors import NotFoundError, UsageError
from semcache.replay.rundir import REQUESTS, RunDir, find_run, load_summaries, new_path

NOW = datetime(2026, 11, 20, 11, 7, 31, tzinfo=UTC)


def test_name_of_a_new_run(tmp_path):
    first = new_path(tmp_path, "my data/ö", NOW)
    assert first.name == "2026-11-20T11-07-31_my_data_ö"
    first.mkdir()
    assert new_path(tmp_path, "my data/ö", NOW).name == "2026-11-20T11-07-31_my_data_ö-2"


def test_runs_are_found_by_path_name_and_last(tmp_path):
    for name in ("2026-01", "2026-02"):
        RunDir.create(tmp_path / name).close()
    assert find_run("2026-01", tmp_path) == tmp_path / "2026-01"
    assert find_run(str(tmp_path / "2026-01"), Path("nowhere")) == tmp_path / "2026-01"
    assert find_run("last", tmp_path) == tmp_path / "2026-02"
    with pytest.raises(NotFoundError, match=r"no run 'other'; newest in .*: 2026-01, 2026-02"):
        find_run("other", tmp_path)
    with pytest.raises(NotFoundError, match=r"holds no summary\.json"):
        load_summaries(tmp_path / "2026-01")


def test_records_come_back_as_they_were(tmp_path, make_record):
    answers = [make_record(index=0, answer="ä\u2028\n|"), make_record(index=2, answer="\ud800")]
    records = [answers[0], make_record(None, index=1), answers[1]]
    run = RunDir.create(tmp_path / "r")
    for record in records:
        run.append(record)
    run.save([{"x": 1}])
    run.close()
    again = RunDir.resume(tmp_path / "r")
    again.close()
    assert again.records == records
    with (tmp_path / "r" / "requests.csv").open(newline="") as file:
        assert [row["error"] for row in csv.DictReader(file)] == ["", "engine_error", ""]


def test_a_damaged_log_is_refused_and_a_torn_last_line_dropped(tmp_path, make_record):
    run = RunDir.create(tmp_path / "r")
    run.append(make_record())
    run.close()
    log = tmp_path / "r" / REQUESTS
    with log.open("a") as file:
        file.write('{"phase": "ru')
    again = RunDir.resume(tmp_path / "r")
    again.close()
    assert len(again.records) == 1
    log.write_text("nonsense\n")
    with pytest.raises(UsageError, match="cannot resume"):
        RunDir.resume(tmp_path / "r")


def test_options_are_valid_toml(tmp_path):
    run = RunDir.create(tmp_path / "r")
    odd = {"text": 'a"b\\c\n\x7f\u2028ö', "none": None, "list": ["x", 1, 2.5], "map": {"question": "q r"}, "flag": True}
    run.save_options({"options": odd, "dataset": {"path": Path("x")}})
    run.close()
    saved = tomllib.loads((tmp_path / "r" / "run.toml").read_text(encoding="utf-8"))
    assert saved["options"] == {name: value for name, value in odd.items() if value is not None}
    assert saved["dataset"]["path"] == "x"
    assert "semcache" in saved["versions"]


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the run"):
        RunDir.create(tmp_path / "file" / "r")
