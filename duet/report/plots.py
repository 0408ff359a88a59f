"""Figures of a run: grid heat maps, forgetting, losses, per-layer α, and what became of the old boxes.

Every function takes the content of results.json (docs/results.md) and returns a Matplotlib figure, or None when
the run has nothing to show in it. ``figures.to_png`` and ``figures.to_svg`` write them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from duet.report.figures import HEAT, INK, LINES, MUTED, ON_HEAT, RULE, STYLE, light_grid, line_colour, new_figure
from duet.report.rows import (
    ABSENT,
    class_list,
    grid_values,
    learned_classes,
    number,
    own_slice_map,
    stage_of,
    stage_title,
)

_FATES = (("found", HEAT), ("wrong_class", LINES[1]), ("missed", RULE))
_LOG_SPAN = 30.0


@matplotlib.rc_context(STYLE)
def grid_figure(results: Mapping[str, Any], tasks: Sequence[int] | None = None) -> Figure | None:
    """Heat maps of the mAP50 of every task's classes in every domain, one panel per stage.

    One colour scale, 0 to 1, for all. Hatched cells hold classes that are not learned yet; framed cells are those
    that were trained.

    Args:
        results: the content of results.json.
        tasks: the stages to draw, all of them when None.
    """
    numbers = [stage["task"] for stage in results["stages"]] if tasks is None else list(tasks)
    numbers = [task for task in numbers if stage_of(results, task).get("grid")]
    if not numbers:
        return None
    columns = min(len(numbers), 2)
    rows = math.ceil(len(numbers) / columns)
    size = len(results["series"]["tasks"])
    figure = new_figure(columns * (1.5 + 0.78 * size), rows * (0.75 + 0.52 * size))
    for position, task in enumerate(numbers, start=1):
        axes = figure.add_subplot(rows, columns, position)
        axes.set_title(stage_title(results, task) if task else "Joint model")
        _draw_grid(axes, results, stage_of(results, task))
    return figure


@matplotlib.rc_context(STYLE)
def forgetting_figure(results: Mapping[str, Any]) -> Figure | None:
    """The mAP50 of D_i[C_i], each task's classes in their own domain, from stage i to the last one."""
    stages = results["stages"]
    if len(stages) < 2:
        return None
    figure = new_figure(4.7, 3.0)
    axes = figure.add_subplot()
    ends = []
    for position, task in enumerate(results["series"]["tasks"][: len(stages)]):
        values = [_nan(own_slice_map(stage, task)) for stage in stages[position:]]
        numbers = [stage["task"] for stage in stages[position:]]
        axes.plot(numbers, values, color=line_colour(position), marker="o", markersize=4.5)
        name = textwrap.shorten(f"{class_list(task['classes'])} · {task['domain']}", 30, placeholder=" …")
        ends.append((values[-1], name, line_colour(position)))
    axes.set(ylim=(0, 1.04), ylabel="mAP50", xlabel="after task", xlim=(0.85, stages[-1]["task"] + 0.1))
    axes.set_xticks([stage["task"] for stage in stages])
    light_grid(axes)
    _name_ends(axes, stages[-1]["task"] + 0.13, ends)
    return figure


@matplotlib.rc_context(STYLE)
def loss_figure(results: Mapping[str, Any], task: int) -> Figure | None:
    """Every loss of one stage over its epochs (means); weighted ones dashed in the colour of the plain one.

    The axis is logarithmic when the losses span more than a factor of 30; zeros and absent values are gaps then.
    """
    epochs = stage_of(results, task).get("losses") or []
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    if not names:
        return None
    figure = new_figure(4.6, 3.0)
    axes = figure.add_subplot()
    plain = list(dict.fromkeys(_plain_name(name) for name in names))
    for name in names:
        dashes = "--" if name.endswith("_weighted") else "-"
        style = {"color": line_colour(plain.index(_plain_name(name))), "linestyle": dashes}
        values = [_nan(epoch.get(name)) for epoch in epochs]
        marker = "o" if len(epochs) == 1 else None
        axes.plot(range(1, len(epochs) + 1), values, label=name.replace("_", " "), marker=marker, **style)
    _choose_scale(axes, [value for epoch in epochs for value in epoch.values() if value is not None])
    axes.set(xlabel="epoch", title=stage_title(results, task))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    light_grid(axes)
    figure.legend(loc="outside lower left", ncols=3, handlelength=2.4)
    return figure


@matplotlib.rc_context(STYLE)
def alpha_figure(results: Mapping[str, Any]) -> Figure | None:
    """The merge's α of every layer in the model's order, one line per stage: the weight of the old update."""
    merges = {stage["task"]: stage["merge"]["alpha"] for stage in results["stages"] if _has_alpha(stage)}
    layers = list(dict.fromkeys(layer for alpha in merges.values() for layer in alpha))
    if not layers:
        return None
    figure = new_figure(9.6, 3.3)
    axes = figure.add_subplot()
    for task, alpha in merges.items():
        values = [_nan(alpha.get(layer)) for layer in layers]
        label, colour = stage_title(results, task), line_colour(task - 1)
        axes.plot(range(len(layers)), values, label=label, color=colour, linewidth=1.2, marker=".", markersize=3.5)
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set(ylabel="α", xlim=(-0.5, len(layers) - 0.5))
    _name_blocks(axes, layers)
    light_grid(axes)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.6)
    return figure


@matplotlib.rc_context(STYLE)
def old_boxes_figure(results: Mapping[str, Any]) -> Figure | None:
    """Shares of the test boxes of earlier tasks' classes that were found, given a wrong class, or missed.

    One bar per stage, task and place (the task's own domain, or all others together); scores from 0.25, IoU 0.5.
    """
    groups = [(stage["task"], _fate_bars(results, stage)) for stage in results["stages"]]
    groups = [(task, bars) for task, bars in groups if bars]
    if not groups:
        return None
    rows = sum(len(bars) + 1 for _, bars in groups)
    figure = new_figure(4.8, 0.7 + 0.23 * rows)
    axes = figure.add_subplot()
    labels: dict[int, str] = {}
    row = 0
    for task, bars in groups:
        axes.text(0, row + 0.1, f"After task {task}", va="center", weight="bold")
        for label, boxes, shares in bars:
            row += 1
            labels[row] = label
            _draw_bar(axes, row, boxes, shares)
        row += 1
    axes.set(xlim=(0, 1), ylim=(row - 0.4, -0.5))
    axes.set_yticks(list(labels), labels=list(labels.values()))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    handles = [Patch(color=colour, label=name.replace("_", " ")) for name, colour in _FATES]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.0, handleheight=1.0)
    return figure


def _draw_grid(axes: Axes, results: Mapping[str, Any], stage: Mapping[str, Any]) -> None:
    tasks, domains = results["series"]["tasks"], results["series"]["domains"]
    values, known = grid_values(stage), set(learned_classes(results, stage["task"]))
    for column, task in enumerate(tasks):
        for row, domain in enumerate(domains):
            learned = known.issuperset(task["classes"])
            _draw_cell(axes, column, row, values.get((domain, task["task"])), learned)
            if learned and task["domain"] == domain and stage["task"]:
                frame = Rectangle((column - 0.44, row - 0.44), 0.88, 0.88, fill=False, edgecolor=INK, linewidth=1.3)
                axes.add_patch(frame)
    axes.set(xlim=(-0.5, len(tasks) - 0.5), ylim=(len(domains) - 0.5, -0.5))
    axes.set_xticks(range(len(tasks)), labels=[textwrap.fill(class_list(task["classes"]), 12) for task in tasks])
    axes.set_yticks(range(len(domains)), labels=domains)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_cell(axes: Axes, column: int, row: int, value: float | None, learned: bool) -> None:
    place = {"xy": (column - 0.48, row - 0.48), "width": 0.96, "height": 0.96, "linewidth": 0}
    if not learned:
        axes.add_patch(Rectangle(**place, facecolor="none", edgecolor=RULE, hatch="////"))
        return
    shade = 0.06 + 0.94 * (value or 0.0)
    look = {"facecolor": RULE, "alpha": 0.5} if value is None else {"facecolor": HEAT, "alpha": shade}
    axes.add_patch(Rectangle(**place, **look))
    colour = ON_HEAT if value is not None and value > 0.65 else INK
    axes.text(column, row, ABSENT if value is None else number(value, 2), ha="center", va="center", color=colour)


def _draw_bar(axes: Axes, row: int, boxes: int, shares: Sequence[float]) -> None:
    left = 0.0
    for (_, colour), share in zip(_FATES, shares):
        axes.barh(row, share, left=left, color=colour, height=0.74)
        left += share
    axes.text(1.015, row, f"{boxes} boxes", va="center", fontsize=8, color=MUTED)


def _name_ends(axes: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name beside its end, moved apart so that no two overlap."""
    ends = sorted((end for end in ends if not math.isnan(end[0])), key=lambda end: end[0])
    heights = _spread([end[0] for end in ends], gap=0.075)
    for height, (value, text, colour) in zip(heights, ends):
        axes.text(x, height, f"{text}  {number(value, 2)}", color=colour, va="center", fontsize=8.5)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved apart to at least ``gap``; neighbours that touch stay centred on their mean."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _centred(groups[-1], gap)[0] - _centred(groups[-2], gap)[-1] < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [height for group in groups for height in _centred(group, gap)]


def _centred(heights: Sequence[float], gap: float) -> list[float]:
    start = sum(heights) / len(heights) - gap * (len(heights) - 1) / 2
    return [start + gap * step for step in range(len(heights))]


def _choose_scale(axes: Axes, values: Sequence[float]) -> None:
    positive = [value for value in values if value > 0]
    if positive and max(positive) > _LOG_SPAN * min(positive):
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    else:
        axes.set_ylim(bottom=min([0.0, *values]))


def _name_blocks(axes: Axes, layers: Sequence[str]) -> None:
    """Ticks where a new block begins, thinned to at most 24; a first name that all share moves to the axis."""
    starts: dict[str, int] = {}
    for position, layer in enumerate(layers):
        starts.setdefault(".".join(layer.split(".")[:2]), position)
    roots = {name.split(".")[0] for name in starts}
    shared = f"{roots.pop()}." if len(roots) == 1 else ""
    chosen = list(starts.items())[:: math.ceil(len(starts) / 24)]
    labels = [name.removeprefix(shared) for name, _ in chosen]
    slant = {"rotation": 45, "ha": "right"} if max(map(len, labels)) > 3 else {}
    axes.set_xticks([position for _, position in chosen], labels=labels, **slant)
    axes.set_xlabel(
        f"blocks of {shared[:-1]}, from the input to the head" if shared else "layers, from the input to the head"
    )


def _fate_bars(results: Mapping[str, Any], stage: Mapping[str, Any]) -> list[tuple[str, int, list[float]]]:
    bars = []
    for task in results["series"]["tasks"]:
        if task["task"] >= stage["task"]:
            break
        for own in (True, False):
            rows = [
                row
                for row in stage.get("background") or ()
                if row["class"] in task["classes"] and (row["domain"] == task["domain"]) is own
            ]
            boxes = sum(row["boxes"] for row in rows)
            if boxes:
                place = task["domain"] if own else "other domains"
                label = textwrap.fill(f"{class_list(task['classes'])} · {place}", 26)
                bars.append((label, boxes, [sum(row[name] for row in rows) / boxes for name, _ in _FATES]))
    return bars


def _plain_name(loss: str) -> str:
    """``distill`` for both ``distill_loss`` and ``distill_weighted``."""
    return loss.removesuffix("_weighted").removesuffix("_loss")


def _has_alpha(stage: Mapping[str, Any]) -> bool:
    return bool(stage.get("merge") and stage["merge"].get("alpha"))


def _nan(value: float | None) -> float:
    return np.nan if value is None else value
