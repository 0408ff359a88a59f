"""Plots of how models relate."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.figure import Figure

from merging.analysis import Comparison, Relation


def plot_comparison(comparison: Comparison, path: str | Path | None = None) -> Figure:
    """Cosine and sign conflict per layer, one bar each, with the totals as lines.

    Args:
        comparison: at least one layer.
        path: where to save it, the kind by its ending; ``None`` to save nothing.

    Returns:
        The figure.

    Raises:
        ValueError: when there is no layer, or the ending is unknown.
        OSError: when the file cannot be written.
    """
    if not comparison.layers:
        raise ValueError(f"{comparison.a} and {comparison.b} share no layer to plot")
    layers, total = comparison.layers, comparison.total
    figure = Figure(figsize=(max(7.0, 0.16 * len(layers)), 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _bars(upper, layers, [row.cosine for row in layers], total.cosine, "cosine")
    _bars(lower, layers, [100 * row.sign_conflict for row in layers], 100 * total.sign_conflict, "sign conflict, %")
    lower.set_xticks(range(len(layers)), [row.name for row in layers], rotation=90, fontsize=7)
    lower.set_xlabel("layer")
    what = f"task vectors from {_short(comparison.base)}" if comparison.base else "weights"
    figure.suptitle(f"{_short(comparison.a)} and {_short(comparison.b)}: {what}")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _bars(axes, layers: tuple[Relation, ...], values: list[float], total: float, label: str) -> None:
    axes.bar(range(len(layers)), values, color="#4c72b0")
    axes.axhline(total, color="#c44e52", linewidth=1.2, label=f"all parameters: {total:.3g}")
    axes.set_ylabel(label)
    axes.legend(loc="upper right", fontsize=8)


def _short(name: str) -> str:
    return os.sep.join(Path(name).parts[-2:])
