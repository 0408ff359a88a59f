"""What the comparison page shows beside its table: curves, heat maps, what became of old boxes, settings."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duet.report.comparison_rows import ComparedBlock, ComparedRow
from duet.report.comparison_verdicts import shown_rows
from duet.report.figures import line_colour
from duet.report.html import flat_settings
from duet.report.rows import grid_values

CURVE_SIZE = (240, 132)
_LEFT, _RIGHT, _TOP, _BOTTOM = 26.0, 8.0, 8.0, 20.0
_DASHES = ("", "5 3", "1.5 2.5", "8 3 2 3")


@dataclass(frozen=True)
class Look:
    """How a method is drawn everywhere: its place among the rows, colour and dash pattern."""

    position: int
    label: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Curve:
    """One method's AP50 of a class over the tasks: SVG point lists, one per unbroken part, and text for a pointer."""

    look: Look
    parts: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class ClassPanel:
    """The curves of one class: its name, where and when it was taught, and the joint model's height in the picture."""

    name: str
    domain: str
    task: int
    curves: tuple[Curve, ...]
    joint_y: float | None


@dataclass(frozen=True)
class HeatCell:
    """Mean mAP50 over seeds of one task's classes in one domain, and whether a task trained there."""

    value: float | None
    trained: bool


@dataclass(frozen=True)
class HeatMap:
    """The final class × domain grid of one method: rows are domains, columns tasks."""

    label: str
    kind: str
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


@dataclass(frozen=True)
class FateBar:
    """Shares of old boxes that were found, given a wrong class, or missed; ``boxes`` per seed."""

    label: str
    kind: str
    boxes: int
    found: float
    wrong_class: float
    missed: float


def looks_of(block: ComparedBlock) -> dict[str, Look]:
    """The look of each method by label."""
    looks = {}
    for place, row in enumerate(block.rivals):
        looks[row.label] = Look(place, row.label, line_colour(place), _DASHES[place // 8 % len(_DASHES)])
    for place, row in enumerate(block.upper_bounds):
        # Shades of no colour, which follow the page's theme: they are what the others are held against.
        looks[row.label] = Look(len(looks), row.label, "var(--ink)", _DASHES[1 + place % (len(_DASHES) - 1)])
    return {row.label: looks[row.label] for row in block.rows}


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that there are; None when there is none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def class_panels(block: ComparedBlock, own: bool = True) -> list[ClassPanel]:
    """AP50 of each class over the tasks, mean over seeds, from the task that taught it on.

    Args:
        block: the methods; those of a joint run become a line across.
        own: in the class's own domain, or else the mean over the series' other domains.
    """
    sample = block.sample
    if sample is None or len(sample["series"]["tasks"]) < 2:
        return []
    looks, domains = looks_of(block), sample["series"]["domains"]
    panels = []
    for task in sample["series"]["tasks"]:
        for name in task["classes"]:
            where = [domain for domain in domains if (domain == task["domain"]) is own]
            panels.append(_panel(block, looks, name, task, where))
    return [panel for panel in panels if panel.curves]


def axis_ticks(count: int) -> list[tuple[float, int]]:
    """Horizontal place and number of each task on a curve's axis."""
    return [(round(_x(task, count), 1), task) for task in range(1, count + 1)]


def heat_maps(block: ComparedBlock) -> list[HeatMap]:
    """The class × domain grid after the last task of every method that has one."""
    sample = block.sample
    if sample is None:
        return []
    tasks, domains = sample["series"]["tasks"], sample["series"]["domains"]
    maps = []
    for row in shown_rows(block):
        grids = [grid_values(results["stages"][-1]) for results in row.results]
        if not any(grids):
            continue
        rows = tuple(
            (domain, tuple(_heat_cell(grids, domain, task, row.kind == "joint") for task in tasks))
            for domain in domains
        )
        maps.append(HeatMap(row.label, row.kind, rows))
    return maps


def fate_bars(block: ComparedBlock, own: bool) -> list[FateBar]:
    """What became, after the last task, of the test boxes of earlier tasks' classes (score 0.25, IoU 0.5).

    Args:
        block: the methods.
        own: in the classes' own domains, or in all others together.
    """
    bars = []
    for row in shown_rows(block):
        cells = [cell for results in row.results for cell in _old_cells(results, own)]
        boxes = sum(cell["boxes"] for cell in cells)
        if boxes:
            shares = {key: sum(cell[key] for cell in cells) / boxes for key in ("found", "wrong_class", "missed")}
            bars.append(FateBar(row.label, row.kind, boxes // len(row.results), **shares))
    return bars


def settings_table(block: ComparedBlock) -> tuple[list[tuple[str, str]], list[tuple[str, list[tuple[str, str]]]]]:
    """The settings that all methods share, and for each method those in which it differs."""
    flat = {row.label: dict(flat_settings(row.results[0].get("settings") or {})) for row in block.rows if row.results}
    names = list(dict.fromkeys(name for settings in flat.values() for name in settings if name != "seed"))
    shared = [name for name in names if len({settings.get(name, "") for settings in flat.values()}) == 1]
    first = next(iter(flat.values()), {})
    own = [name for name in names if name not in shared]
    differing = [
        (label, [(name, settings[name]) for name in own if settings.get(name)]) for label, settings in flat.items()
    ]
    return [(name, first.get(name, "")) for name in shared], [pair for pair in differing if pair[1]]


def versions_of(block: ComparedBlock) -> list[tuple[str, str]]:
    """Every version with which a run of the block was made, several side by side where they differ."""
    found: dict[str, dict[str, None]] = {}
    for results in (results for row in block.rows for results in row.results):
        for name, version in (results.get("versions") or {}).items():
            found.setdefault(name, {})[str(version)] = None
    return [(name, ", ".join(versions)) for name, versions in found.items()]


def _panel(
    block: ComparedBlock, looks: Mapping[str, Look], name: str, task: Mapping[str, Any], where: Sequence[str]
) -> ClassPanel:
    count = len(block.sample["series"]["tasks"])
    curves, joint = [], None
    for row in reversed(shown_rows(block)):  # the leader last, on top of the others
        if row.kind == "joint":
            joint = _class_mean(row, 0, name, where)
            continue
        numbers = range(task["task"], count + 1)
        values = [_class_mean(row, number, name, where) for number in numbers]
        if any(value is not None for value in values):
            curves.append(Curve(looks[row.label], _parts(numbers, values, count), _curve_text(row.label, values)))
    return ClassPanel(name, task["domain"], task["task"], tuple(curves), None if joint is None else round(_y(joint), 1))


def _class_mean(row: ComparedRow, number: int, name: str, where: Sequence[str]) -> float | None:
    values = [
        cell["ap50"]
        for results in row.results
        for stage in results["stages"]
        if stage["task"] == number
        for cell in stage.get("class_ap") or ()
        if cell["class"] == name and cell["domain"] in where
    ]
    return mean_of(values)


def _parts(numbers: Iterable[int], values: Sequence[float | None], count: int) -> tuple[str, ...]:
    parts: list[list[str]] = [[]]
    for number, value in zip(numbers, values):
        if value is None:
            parts.append([])
        else:
            parts[-1].append(f"{_x(number, count):.1f},{_y(value):.1f}")
    return tuple(" ".join(part) for part in parts if part)


def _curve_text(label: str, values: Sequence[float | None]) -> str:
    return f"{label}: " + " → ".join("–" if value is None else f"{value:.2f}" for value in values)


def _x(task: int, count: int) -> float:
    return _LEFT + (CURVE_SIZE[0] - _LEFT - _RIGHT) * (task - 1) / (count - 1)


def _y(value: float) -> float:
    return _TOP + (CURVE_SIZE[1] - _TOP - _BOTTOM) * (1 - min(max(value, 0.0), 1.0))


def _heat_cell(
    grids: Sequence[Mapping[tuple[str, int], float | None]], domain: str, task: Mapping[str, Any], joint: bool
) -> HeatCell:
    value = mean_of(grid.get((domain, task["task"])) for grid in grids)
    return HeatCell(value, task["domain"] == domain and not joint)


def _old_cells(results: Mapping[str, Any], own: bool) -> list[Mapping[str, Any]]:
    homes = {name: task["domain"] for task in results["series"]["tasks"][:-1] for name in task["classes"]}
    cells = results["stages"][-1].get("background") or ()
    return [cell for cell in cells if cell["class"] in homes and (homes[cell["class"]] == cell["domain"]) is own]
