"""What is said on stderr while a replay runs."""

from __future__ import annotations

from semcache.replay.memory import Memory, resident_mb
from semcache.replay.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_every_few_seconds(make_record, capsys):
    clock = Clock()
    progress = Progress(plain=True, clock=clock)
    progress.start("per_user x2", 4)
    for outcome, at in (("exact", 1.0), ("miss", 4.0), (None, 6.0), ("miss", 7.0)):
        clock.now = at
        progress.update(make_record(outcome))
    progress.stop()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "per_user x2: 3/4  0.5/s  eta 2 s  errors 1  reused 33.3%  exact 1  miss 1\n"


def test_quiet_says_nothing_but_warnings(make_record, capsys):
    clock = Clock()
    progress = Progress(quiet=True, clock=clock)
    progress.start("x", 1)
    clock.now = 100.0
    progress.update(make_record())
    progress.note("resuming")
    progress.warn("left behind")
    assert capsys.readouterr().err == "left behind\n"


def test_memory_of_a_process(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmRSS:\t  1000000 kB\n")
    assert resident_mb(7, tmp_path) == 1024.0
    assert resident_mb(8, tmp_path) is None


def test_memory_series_stays_bounded():
    memory = Memory()
    assert memory.summary() == {"peak_mb": None, "series": None}
    for at in range(5000):
        memory.add(at, at % 100)
    assert len(memory.samples) <= 2000
    assert memory.peak_mb == 99
