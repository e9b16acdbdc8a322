"""The memory that one measurement needs beyond what was there before, such as weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class Peak:
    """`mb` is known once the measurement is over; None where the system does not say."""

    mb: float | None = None


@contextmanager
def peak_memory(device: str, pid: int | None = None) -> Iterator[Peak]:
    """Device memory on CUDA, else resident memory; of this process or, on a CPU, of another one."""
    peak, process = Peak(), Path("/proc") / ("self" if pid is None else str(pid))
    if torch.device(device).type == "cuda":
        if pid is not None:
            yield peak
            return
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.mb = (torch.cuda.max_memory_allocated(device) - before) / 1e6
        return
    try:
        (process / "clear_refs").write_text("5")  # the highest resident size so far becomes the present one
        before_kb = _status_kb(process, "VmRSS")
    except (OSError, ValueError):
        yield peak
        return
    yield peak
    peak.mb = max(0, _status_kb(process, "VmHWM") - before_kb) / 1e3


def _status_kb(process: Path, name: str) -> int:
    for line in (process / "status").read_text("ascii", "replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"{process}/status has no {name}")
