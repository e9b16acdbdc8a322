"""Resident memory of a daemon on this machine while a replay runs; what /proc does not tell is unknown."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE_S = 1.0
MAX_SAMPLES = 2000
_RSS = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


@dataclass
class Memory:
    """Samples of one combination: seconds since the run began, megabytes (10^6 bytes)."""

    samples: list[tuple[float, float]] = field(default_factory=list)
    peak_mb: float | None = None

    def add(self, at_s: float, mb: float) -> None:
        self.peak_mb = max(self.peak_mb or 0.0, mb)
        self.samples.append((round(at_s, 2), mb))
        if len(self.samples) > MAX_SAMPLES:  # a long run keeps every second one, over and over
            del self.samples[1::2]

    def summary(self) -> dict[str, Any]:
        return {"peak_mb": self.peak_mb, "series": [list(sample) for sample in self.samples] or None}


def resident_mb(pid: int, proc: Path = Path("/proc")) -> float | None:
    """Resident memory of a process; None where the system does not say."""
    try:
        found = _RSS.search((proc / str(pid) / "status").read_text())
    except OSError:
        return None
    return round(int(found[1]) * 1024 / 1e6, 1) if found else None


@asynccontextmanager
async def sampled(pid: int | None, elapsed_s: Callable[[], float]) -> AsyncIterator[Memory]:
    """Sample a process while the body runs; without a process the memory stays unknown."""
    memory = Memory()

    async def sample() -> None:
        while pid is not None and (mb := resident_mb(pid)) is not None:
            memory.add(elapsed_s(), mb)
            await asyncio.sleep(SAMPLE_S)

    task = asyncio.create_task(sample())
    try:
        yield memory
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
