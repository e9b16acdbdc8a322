"""How many slots fit: the only place that looks at free memory, and it shows its sum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from semcache.daemon.engine.kv import slot_capacity
from semcache.errors import ModelLoadError

if TYPE_CHECKING:
    from semcache.daemon.engine.model import ModelInfo

SLOT_CHOICES = (32, 16, 8, 4, 2, 1)
_USABLE_SHARE = 0.85  # the rest is for activations, logits and everything else on the machine
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: str) -> int:
    """Memory that can still be allocated on the device, once the weights are loaded."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return min(_available_host_bytes(), _cgroup_bytes_left())


def slots_that_fit(info: ModelInfo, free_bytes: int) -> tuple[int, str]:
    """The largest allowed number of slots within 85 % of free memory, and the sum behind it for the log."""
    slot_bytes = info.kv_bytes_per_token * slot_capacity(info.context_tokens)
    budget_bytes = int(free_bytes * _USABLE_SHARE)
    sum_text = (
        f"{info.kv_bytes_per_token:,} B of KV per token × {slot_capacity(info.context_tokens):,} tokens = "
        f"{_gib(slot_bytes)} per slot; 85 % of {_gib(free_bytes)} free on {info.device} is {_gib(budget_bytes)}"
    )
    for num_slots in SLOT_CHOICES:
        if num_slots * slot_bytes <= budget_bytes:
            return num_slots, f"{num_slots} slots: {sum_text}"
    raise ModelLoadError(
        f"no slot for {info.name} fits: {sum_text}; lower engine.max_context_tokens below {info.context_tokens} "
        "or choose a smaller model"
    )


def lacking(info: ModelInfo, num_slots: int, free_bytes: int) -> str | None:
    """What to tell who set more slots than fit once all are full; short prompts may never fill them."""
    full_bytes = num_slots * info.kv_bytes_per_token * slot_capacity(info.context_tokens)
    if full_bytes <= free_bytes:
        return None
    return (
        f"engine.slots = {num_slots} takes {_gib(full_bytes)} where all are full, and {_gib(free_bytes)} are free on "
        f"{info.device}; lower it or engine.max_context_tokens unless prompts stay short"
    )


def _available_host_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no /proc: half of what is built in


def _cgroup_bytes_left() -> int:
    """What the container's limit leaves; MemAvailable shows the whole machine's memory there."""
    try:
        limit, used = (_CGROUP / "memory.max").read_text(), (_CGROUP / "memory.current").read_text()
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # What is used includes cached files; the kernel drops those that nobody used lately before it refuses memory.
        return max(0, int(limit) - int(used) + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # no limit reads "max"
        return 1 << 62


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
