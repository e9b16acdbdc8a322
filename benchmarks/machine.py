"""What a figure was measured on: the `machine` object of every benchmark's JSON, and a quiet moment on it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory, software versions and load; `device` is the torch device that computes."""
    import torch
    import transformers

    import semcache

    is_cuda = torch.device(device).type == "cuda"
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_1m": round(os.getloadavg()[0], 2),  # above the number of cores, times say little and ratios more
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "cuda": torch.version.cuda if is_cuda else None,
        "threads": torch.get_num_threads(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "semcache": semcache.__version__,
    }


def until_quiet(*, timeout_s: float, window_s: float = 0.1) -> bool:
    """Wait until less than a tenth of the processors' time is used; False where they are still busy at the end.

    Servers go on for a second after an answer, and whoever was asked next would pay for it.
    """
    deadline = time.monotonic() + timeout_s
    busy, total = _processor_time()
    while time.monotonic() < deadline:
        time.sleep(window_s)
        was_busy, was_total = busy, total
        busy, total = _processor_time()
        if busy - was_busy <= (total - was_total) / 10:
            return True
    return False


def _processor_time() -> tuple[int, int]:
    """Busy and all time of the processors so far, in ticks; zeros where the system does not say."""
    try:
        with Path("/proc/stat").open(encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except OSError:
        return 0, 0
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
