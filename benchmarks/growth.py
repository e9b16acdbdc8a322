"""What a cache costs when it grows: look-up, memory and start-up, from a thousand to a hundred thousand entries.

`python -m benchmarks.growth --sizes 1000,10000,100000 [--json FILE]`. Entries are real rows with random unit vectors in
one scope, blocks are real files of few bytes. Each size is opened by a process of its own, so that start-up and memory
are those of a daemon that finds the cache as it is. The embedding is not part of a look-up here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.growth_cache import Grown, fill, open_store
from benchmarks.machine import machine

SCHEMA = "semcache.bench.growth/1"
_PROBE_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Row:
    """One size: as many entries as blocks."""

    size: int
    put_entry_ms: float  # mean since the size before
    put_block_ms: float
    open_ms: float  # the store, not the libraries
    first_lookup_ms: float  # reads every embedding of the scope
    lookup_ms_p50: float  # not stored: exact key, aliases, nearest neighbours, policy, KV prefix
    lookup_ms_p99: float
    exact_ms_p50: float  # stored: the exact key alone
    prefix_ms_p50: float  # the longest stored prefix of a prompt, with its files read
    memory_mb: float  # resident, beyond that of the libraries
    memory_per_entry_bytes: float
    disk_per_entry_bytes: float  # database and block files


def main(arguments: Sequence[str] | None = None) -> int:
    """Grow one cache through all sizes; 0."""
    options = _options(arguments)
    if options.probe:
        print(json.dumps(probe(options.probe, options.sizes[0], options.lookups)))
        return 0
    about = machine()
    for name, value in about.items():
        print(f"{name:22}{value}")
    rows = measure(options.sizes, options.lookups)
    ratios = ratios_of(rows)
    for line in (*table(rows), "", *bars(ratios)):
        print(line)
    if options.json:
        found = {"schema": SCHEMA, "machine": about, "rows": [asdict(row) for row in rows], "ratios": ratios}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(sizes: Sequence[int], num_lookups: int) -> list[Row]:
    """One row for each size, smallest first."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="semcache-growth-") as folder:
        home = Path(folder)
        before = 0
        for size in sizes:
            print(f"growing to {size}", file=sys.stderr, flush=True)
            filled = fill(home, before, size)
            rows.append(Row(size=size, **filled, **_in_new_process(home, size, num_lookups)))
            before = size
    return rows


def _in_new_process(home: Path, size: int, num_lookups: int) -> dict[str, float]:
    command = [
        sys.executable, "-m", "benchmarks.growth", "--probe", str(home), "--sizes", str(size),
        "--lookups", str(num_lookups),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False, cwd=Path(__file__).parents[1],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # as the daemon sets it for itself
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"looking into the cache of {size} entries failed: {done.stderr.strip()}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def probe(home: Path, size: int, num_lookups: int) -> dict[str, float]:
    """What one process sees that opens the cache at `home`; None of it is written there but the counts of use."""
    before_mb = _resident_mb()
    started = time.perf_counter()
    store = open_store(home)
    open_ms = (time.perf_counter() - started) * 1e3
    grown = Grown(store, size)
    first_ms = grown.lookup_ms()
    misses = sorted(grown.lookup_ms() for _ in range(num_lookups))
    exact = sorted(grown.exact_ms() for _ in range(num_lookups))
    prefixes = sorted(grown.prefix_ms() for _ in range(num_lookups))
    memory_mb = max(0.0, _resident_mb() - before_mb)
    store.close()
    disk_bytes = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    return {
        "open_ms": open_ms, "first_lookup_ms": first_ms, "lookup_ms_p50": misses[len(misses) // 2],
        "lookup_ms_p99": misses[int(0.99 * (len(misses) - 1))], "exact_ms_p50": exact[len(exact) // 2],
        "prefix_ms_p50": prefixes[len(prefixes) // 2], "memory_mb": memory_mb,
        "memory_per_entry_bytes": memory_mb * 1e6 / size, "disk_per_entry_bytes": disk_bytes / size,
    }  # fmt: skip


# Ratio, most that it may be, what it says.
_BARS = (
    ("exact_growth", 2.0, "exact look-up, largest to smallest"),
    ("prefix_growth", 2.0, "prefix look-up, largest to smallest"),
    ("memory_growth", 1.2, "memory per entry, largest to the size before"),
    ("open_s", 2.0, "start-up at the largest size, seconds"),
    ("lookup_ms", 6.0, "look-up p50 at the largest size, milliseconds"),
)


def ratios_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """How the largest size compares; growth is unknown with one size."""
    first, last = rows[0], rows[-1]
    several = len(rows) > 1
    return {
        "exact_growth": last.exact_ms_p50 / first.exact_ms_p50 if several else None,
        "prefix_growth": last.prefix_ms_p50 / first.prefix_ms_p50 if several else None,
        "memory_growth": _over(last.memory_per_entry_bytes, rows[-2].memory_per_entry_bytes) if several else None,
        "open_s": last.open_ms / 1e3,
        "lookup_ms": last.lookup_ms_p50,
    }


def bars(ratios: Mapping[str, float | None]) -> list[str]:
    lines = []
    for name, at_most, meaning in _BARS:
        value = ratios[name]
        verdict = "not measured" if value is None else "met" if value <= at_most else "missed"
        text = "–" if value is None else f"{value:.3g}"
        lines.append(f"{meaning:48}{text:>8}   bar <= {at_most:<5g} {verdict}")
    return lines


def table(rows: Sequence[Row]) -> list[str]:
    """One line for each figure, one column for each size."""
    values: list[dict[str, Any]] = [asdict(row) for row in rows]
    lines = []
    for name in values[0]:
        cells = (f"{value[name]:>12}" if name == "size" else f"{value[name]:>12.3f}" for value in values)
        lines.append(f"{name:24}" + "".join(cells))
    return lines


def _over(above: float, below: float) -> float | None:
    return above / below if below else None


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    add = parser.add_argument
    add("--sizes", type=_sizes, default=(1000, 10_000, 100_000), metavar="N,…", help="entries, and as many blocks")
    add("--lookups", type=int, default=200, metavar="N", help="look-ups of each kind at each size")
    add("--json", type=Path, metavar="FILE")
    add("--probe", type=Path, help=argparse.SUPPRESS)  # what a new process is started with
    options = parser.parse_args(arguments)
    if options.lookups < 1:
        parser.error("--lookups: at least 1")
    return options


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(part) for part in text.split(",")}))
    if sizes[0] < 10:
        raise argparse.ArgumentTypeError(f"{sizes[0]} is not at least 10")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
