"""The memory that one measurement needs beyond what was there before, such as weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Peak:
    """`mb` is known once the measurement is over; None where the system does not say."""

    mb: float | None = None


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Device memory on CUDA, else the resident memory of this process."""
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.mb = (torch.cuda.max_memory_allocated(device) - before) / 1e6
        return
    try:
        _CLEAR.write_text("5")  # the highest resident size so far becomes the present one
        before_kb = _status_kb("VmRSS")
    except (OSError, ValueError):
        yield peak
        return
    yield peak
    peak.mb = max(0, _status_kb("VmHWM") - before_kb) / 1e3


def _status_kb(name: str) -> int:
    for line in _STATUS.read_text("ascii", "replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"{_STATUS} has no {name}")
