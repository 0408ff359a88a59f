"""compare.html: one file that shows a whole comparison and loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duet.report.compared import ComparedScene
from duet.report.comparison_figures import overall_figure
from duet.report.comparison_noise import LEVEL, Difference
from duet.report.comparison_parts import (
    CURVE_SIZE,
    axis_ticks,
    class_panels,
    fate_bars,
    heat_maps,
    looks_of,
    settings_table,
    versions_of,
)
from duet.report.comparison_rows import (
    COMPARED,
    KIND_NOTES,
    LOWER_IS_BETTER,
    METRICS,
    ComparedBlock,
    ComparedRow,
    best_label,
)
from duet.report.comparison_tables import absent_lines, estimate_interval
from duet.report.comparison_verdicts import Verdict, shown_rows, verdict_of
from duet.report.drawing import class_colours, draw_verdict, judge, text_colour
from duet.report.html import Picture, embedded_picture, inline_file, inline_svg, page_environment, truth_picture
from duet.report.interval_rows import interval_text
from duet.report.rows import class_list, duration, number, signed

_COLUMNS = tuple(name for name in COMPARED if not name.key.endswith("_capped"))
_METERS = ("overall", "rai", "ni")
_PUBLISHED_PLACES = {"avg_ri": 0, "avg_gi": 1, "rai": 2}
_SCENE_PIXELS = 320
_WIDE, _NARROW = (9.6, 4.9), (3.5, 3.9)  # inches


@dataclass(frozen=True)
class Cell:
    """A cell of the sortable table: the number it is sorted by, and what is printed."""

    value: float | None
    text: str = "–"
    spread: str = ""
    interval: str = ""
    best: bool = False
    meter: bool = False


@dataclass(frozen=True)
class Line:
    """A line of the sortable table; ``kind`` is a row's kind or ``published``."""

    label: str
    kind: str
    note: str
    seeds: str
    done: int
    colour: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Bar:
    """A difference to the leader, places in percent of the track's width; without an interval ``left`` is None."""

    label: str
    difference: Difference
    interval: str
    mark: float
    left: float | None
    width: float


def render_comparison(
    blocks: Sequence[ComparedBlock], scenes: Sequence[ComparedScene], name: str, date: str | None = None
) -> str:
    """The page as text.

    Args:
        blocks: what is compared, not empty.
        scenes: test pictures where the methods differ; may be empty.
        name: the comparison's title.
        date: when it ended, as it shall be printed; left out when None.
    """
    environment = page_environment()
    environment.filters["signed"] = signed
    template = environment.get_template("compare.html.j2")
    parts = [_block(block, scenes, place) for place, block in enumerate(blocks, start=1)]
    runs = [len(row.finished) for block in blocks for row in block.rows]
    failed = sum(len(row.failed) for block in blocks for row in block.rows)
    pending = sum(len(row.pending) for block in blocks for row in block.rows)
    return template.render(
        name=name,
        date=date,
        blocks=parts,
        facts=_facts(blocks),
        runs=sum(runs),
        failed=failed,
        pending=pending,
        level=round(100 * LEVEL),
        columns=_COLUMNS,
        lower=LOWER_IS_BETTER,
        kind_notes=KIND_NOTES,
        size=CURVE_SIZE,
        style=inline_file("report.css") + inline_file("compare.css"),
        script=inline_file("compare.js"),
    )


def table_lines(block: ComparedBlock, metric: str = "map50") -> list[Line]:
    """The lines of the sortable table: methods by falling Overall, then upper bounds, then what was published."""
    looks = looks_of(block)
    best = {name.key: best_label(block.rivals, name.key, metric) for name in _COLUMNS}
    lines = [_line(row, looks[row.label].colour, best, metric) for row in shown_rows(block, metric)]
    if metric == "map50":  # the papers print mAP at IoU 0.5 only
        lines += _published_lines(block)
    return lines


def _facts(blocks: Sequence[ComparedBlock]) -> list[tuple[str, str]]:
    def unique(values: Iterator[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    rows = [row for block in blocks for row in block.rows]
    seeds = sorted(
        {run.seed for row in rows for run in (*row.finished, *row.failed)} | {s for r in rows for s in r.pending}
    )
    return [
        ("Series", unique(block.series for block in blocks)),
        ("Detector", unique(block.detector for block in blocks)),
        ("Methods", str(len(dict.fromkeys(row.label for row in rows)))),
        ("Seeds", ", ".join(map(str, seeds))),
    ]


def _block(block: ComparedBlock, scenes: Sequence[ComparedScene], place: int) -> dict[str, Any]:
    verdict = verdict_of(block)
    sample = block.sample
    tasks = sample["series"]["tasks"] if sample else []
    colours = class_colours(sample["series"]["classes"]) if sample else {}
    shared, differing = settings_table(block)
    return {
        "id": f"b{place}",
        "block": block,
        "verdict": verdict,
        "tiles": _tiles(verdict),
        "tasks": tasks,
        "chips": {name: (colour, text_colour(colour)) for name, colour in colours.items()},
        "tables": {metric: table_lines(block, metric) for metric in METRICS},
        "plots": _plots(block, place),
        "bars": _bars(verdict.differences),
        "zero": _scale(verdict.differences)[2],
        "looks": [looks_of(block)[row.label] for row in shown_rows(block) if row.kind != "joint" and row.finished],
        "curves": [("own", class_panels(block, True)), ("other", class_panels(block, False))],
        "ticks": axis_ticks(len(tasks)) if len(tasks) > 1 else [],
        "heat_maps": heat_maps(block),
        "task_names": [class_list(task["classes"]) for task in tasks],
        "fates": [
            ("In the domain where they were taught", fate_bars(block, True)),
            ("In all other domains", fate_bars(block, False)),
        ],
        "scenes": _scenes(block, scenes),
        "absent": absent_lines(block),
        "failed": [run for row in block.rows for run in row.failed],
        "pending": [(row.label, row.pending) for row in block.rows if row.pending],
        "settings": shared,
        "differing": differing,
        "versions": versions_of(block),
        "intervals": _has_intervals(block),
    }


def _line(row: ComparedRow, colour: str, best: Mapping[str, str | None], metric: str) -> Line:
    total = len(row.finished) + len(row.failed) + len(row.pending)
    done = len(row.finished)
    rival = row.kind == "method"
    cells = tuple(_cell(row, name.key, metric, rival and best[name.key] == row.label) for name in _COLUMNS)
    seeds = str(done) if done == total else f"{done} of {total}"
    return Line(row.label, row.kind, KIND_NOTES[row.kind], seeds, done, colour, cells)


def _cell(row: ComparedRow, key: str, metric: str, best: bool) -> Cell:
    found = row.indices[metric][key]
    if found is None:
        return Cell(None)
    show = duration if key == "train_seconds" else number
    known = sum(value is not None for value in found.values)
    spread = "" if found.sd is None else f"± {show(found.sd)}"
    if known < len(found.values):
        spread += f" ({known} of {len(found.values)} seeds)"
    return Cell(found.mean, _minus(show(found.mean)), spread, _minus(estimate_interval(found)), best, key in _METERS)


def _published_lines(block: ComparedBlock) -> list[Line]:
    lines = []
    for row in block.published:
        values = (row.ri, row.gi, row.rai)
        cells = []
        for name in _COLUMNS:
            place = _PUBLISHED_PLACES.get(name.key)
            if place is None:
                cells.append(Cell(None))
                continue
            spread = f"± {number(row.spread[place] / 100)}" if row.spread else ""
            cells.append(Cell(values[place] / 100, number(values[place] / 100), spread))
        lines.append(Line(row.method, "published", f"published, Table {block.table}", "–", 0, "", tuple(cells)))
    return lines


def _tiles(verdict: Verdict) -> list[dict[str, Any]]:
    if verdict.leader is None:
        return []
    keys = dict.fromkeys((verdict.index.key, "rai", "ni", "avg_ri", "avg_gi"))
    names = {name.key: name for name in COMPARED}
    found = verdict.leader.indices["map50"]
    return [{"name": names[key], "cell": _cell(verdict.leader, key, "map50", False)} for key in keys if found[key]]


def _plots(block: ComparedBlock, place: int) -> list[tuple[str, Any]]:
    plots = []
    for kind, size in (("wide", _WIDE), ("narrow", _NARROW)):
        svg = inline_svg(f"overall-{kind}-{place}", overall_figure(block, size), "RAI against Overall of every method")
        if svg is not None:
            plots.append((kind, svg))
    return plots


def _bars(differences: Sequence[Difference]) -> list[Bar]:
    low, high, _ = _scale(differences)

    def percent(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    bars = []
    for item in differences:
        known = item.low is not None and item.high is not None
        left = percent(item.low) if known else None
        width = round(percent(item.high) - percent(item.low), 2) if known else 0.0
        interval = _minus(interval_text((item.low, item.high))) if known else ""
        bars.append(Bar(item.second, item, interval, percent(item.mean), left, width))
    return bars


def _scale(differences: Sequence[Difference]) -> tuple[float, float, float]:
    """Ends of the track in the index's unit, and where zero lies on it in percent."""
    ends = [0.0, *(end for item in differences for end in (item.mean, item.low, item.high) if end is not None)]
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin
    return low, high, round(-100 * low / (high - low), 2)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _has_intervals(block: ComparedBlock) -> bool:
    return any(found and found.low is not None for row in block.rows for found in row.indices["map50"].values())


def _scenes(block: ComparedBlock, scenes: Sequence[ComparedScene]) -> list[tuple[ComparedScene, list[Picture]]]:
    chosen = [scene for scene in scenes if (scene.series, scene.detector) == (block.series, block.detector)]
    return [(scene, _pictures(block, scene)) for scene in chosen]


def _pictures(block: ComparedBlock, scene: ComparedScene) -> list[Picture]:
    """The ground truth, then every method in the table's order."""
    classes = block.sample["series"]["classes"] if block.sample else []
    colours = class_colours(classes)
    pictures = [truth_picture(scene.image_rgb, scene.ground_truth, colours, _SCENE_PIXELS)]
    for line in table_lines(block):
        if line.kind != "published" and line.label in scene.found:
            verdict = judge(scene.found[line.label], scene.ground_truth, classes)
            image = draw_verdict(scene.image_rgb, verdict, colours, _SCENE_PIXELS)
            pictures.append(embedded_picture(image, line.label, verdict.caption))
    return pictures
