"""What this machine's processor and memory are, as far as kernels are chosen by it."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_DECIDING = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")


INTEL, AMD = "GenuineIntel", "AuthenticAMD"


def processor_vendor() -> str | None:
    """INTEL, AMD or None."""
    return next((vendor for vendor in (INTEL, AMD) if vendor in _processor()), None)


def processor_digest() -> str:
    """Eight hexadecimal digits for the processor's model and instruction sets, which decide the kernels."""
    return hashlib.sha256(_processor().encode()).hexdigest()[:8]


def memory_bytes() -> int:
    """Memory of the machine, or what the container may use of it."""
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total_bytes, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no limit reads "max"
        return total_bytes


@cache
def _processor() -> str:
    """What /proc/cpuinfo says of the first core, without its clock; elsewhere what Python knows."""
    try:
        first = _CPUINFO.read_text().split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in first.splitlines() if line.startswith(_DECIDING))
