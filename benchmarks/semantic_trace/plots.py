"""Pictures of a campaign: hits against errors, and errors over time."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.semantic_trace.campaign import LOOSE_HIT_ERROR
from benchmarks.semantic_trace.run import Run


class NoPlotsError(RuntimeError):
    """Pictures cannot be drawn here."""


def need_matplotlib() -> None:
    """Raise NoPlotsError where pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise NoPlotsError("--plots needs matplotlib: pip install 'semcache-kv[plots]'")


def draw(runs: Sequence[Run], budgets: Sequence[float], folder: Path) -> list[Path]:
    """Write the PNGs and return their paths."""
    need_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [_hits(runs, folder / "hits_error.png"), _over_time(runs, budgets, folder / "error_over_time.png")]


def _hits(runs: Sequence[Run], path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    groups: dict[str, dict[Any, list[Run]]] = {}
    for made in runs:
        if made.arm == "none":
            continue
        name = made.arm.split(":")[0]
        if made.budget.max_hit_error is not None:
            name += f", {made.budget.max_hit_error:.0%} per hit"
        groups.setdefault(name, {}).setdefault((made.arm, made.budget.max_error), []).append(made)
    for name, points in groups.items():
        curve = sorted(
            (np.mean([m.num_wrong / m.requests for m in point]), np.mean([m.num_served / m.requests for m in point]))
            for point in points.values()
        )
        axes.plot([100 * x for x, _ in curve], [100 * y for _, y in curve], marker="o", markersize=3, label=name)
    axes.set(
        xlabel="wrong per request, %", ylabel="hits, % of requests", title="Hits against errors, mean of the seeds"
    )
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _over_time(runs: Sequence[Run], budgets: Sequence[float], path: Path) -> Path:
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, len(budgets), figsize=(5 * len(budgets), 4), squeeze=False)
    for axes, budget in zip(grid[0], budgets, strict=True):
        for name in ("vcache", "vcache_grid", "semcache"):
            made = [
                m for m in runs
                if m.arm == name and m.budget.max_error == budget and m.budget.max_hit_error in (None, LOOSE_HIT_ERROR)
            ]  # fmt: skip
            if made:
                num = np.arange(1, made[0].requests + 1)
                share = np.mean([np.cumsum(m.wrong) / num for m in made], axis=0)
                axes.plot(num, 100 * share, label=name)
        axes.axhline(100 * budget, color="black", linewidth=0.8, linestyle="--")
        axes.set(title=f"budget {budget:.1%}", xlabel="requests", ylabel="wrong per request so far, %")
        axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path
