"""Create or bring up to date the project's virtual environment: `python3 tools/setup_venv.py [EXTRA…]`.

Runs on a bare interpreter, so standard library only. Keeps a torch that is already importable, honours pip's own index
settings, and says beforehand when several gigabytes of CUDA packages would come to a machine that cannot use them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"


def main(extras: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - this very check is for those who have an older one
        print(f"semcache needs Python 3.11 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    stamp = VENV / f".installed-{'-'.join(sorted(extras)) or 'base'}"
    wanted = fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    if not PYTHON.exists():
        # A torch of the surrounding interpreter is seen through, so it need not be installed again. That of an
        # activated environment would not be seen: what shows through is the interpreter underneath.
        underneath = Path(sys.base_prefix) / "bin" / "python3" if sys.prefix != sys.base_prefix else sys.executable
        venv.create(VENV, with_pip=True, system_site_packages=has_torch(Path(underneath)))
    install(extras, keep_torch=has_torch(PYTHON))
    stamp.write_text(wanted)
    return 0


def fingerprint() -> str:
    """What the installation depends on."""
    content = (ROOT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes() + str(ROOT).encode()
    return hashlib.sha256(content).hexdigest()


def has_torch(python: Path) -> bool:
    return subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False).returncode == 0


def install(extras: list[str], *, keep_torch: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        lines = CONSTRAINTS.read_text().splitlines(keepends=True)
        constraints.write_text("".join(line for line in lines if not (keep_torch and line.startswith("torch=="))))
        if not keep_torch and not has_nvidia_driver():
            warn_about_cuda(constraints)
        target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
        print(f"installing semcache into {VENV} (a minute or two)", flush=True)
        pip("install", "--quiet", "-c", str(constraints), "-e", target)


def has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def warn_about_cuda(constraints: Path) -> None:
    """Ask pip what would come, without downloading it, and say so in one sentence."""
    report = subprocess.run(
        [str(PYTHON), "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", "-c", str(constraints), "torch"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        names = [item["metadata"]["name"] for item in json.loads(report.stdout)["install"]]
    except (ValueError, KeyError):
        return  # the installation itself will show pip's error
    if any(name.lower().startswith(("nvidia-", "cuda-")) for name in names):
        print(
            "note: this machine has no NVIDIA driver, yet torch will bring several GB of CUDA packages; to avoid that, "
            "press Ctrl-C, install a CPU build of torch into .venv (or point PIP_INDEX_URL at an index that has one) "
            "and run this again",
            flush=True,
        )


def pip(*arguments: str) -> None:
    done = subprocess.run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments], check=False)
    if done.returncode:
        print(f"pip failed (exit {done.returncode}); its message is above", file=sys.stderr)
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
