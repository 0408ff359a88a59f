"""report.html: one file that shows a whole run and loads nothing from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from duet.config import flat
from duet.evaluation.indices import METRICS
from duet.report import plots
from duet.report.drawing import DrawnBox, ScenePanel, class_colours, draw_truth, draw_verdict, judge, text_colour
from duet.report.figures import to_svg
from duet.report.interval_rows import index_interval, interval_lines, interval_text
from duet.report.published import published_rows
from duet.report.rows import (
    INDEX_NAMES,
    MEAN_MAP,
    IndexName,
    class_list,
    count,
    counted,
    duration,
    few_boxes_lines,
    index_block,
    index_value,
    learned_classes,
    number,
    sign_conflict_rates,
    skipped_lines,
    slice_label,
    slice_rows,
    stage_title,
)
from duet.state import write_text

__all__ = ["DrawnBox", "ScenePanel", "write_report"]

_TILES = ("overall", "rai", "ni", "avg_ri", "avg_gi")
_SCENE_PIXELS = 480
_JPEG = {"format": "JPEG", "quality": 84, "subsampling": 0, "optimize": True}


@dataclass(frozen=True)
class Picture:
    """One drawn picture of a scene: its data URL, size in pixels, column heading and caption."""

    url: str
    width: int
    height: int
    heading: str
    caption: str


def write_report(
    results: Mapping[str, Any], scenes: Sequence[ScenePanel], path: Path, *, date: str | None = None
) -> None:
    """Write the HTML page of a run, finished or not; the file appears complete or not at all.

    Args:
        results: the content of results.json, with its ``indices``.
        scenes: test pictures with their boxes, in the order in which they are shown; may be empty.
        path: the file, usually ``report.html``.
        date: when the run ended, as it shall be printed; left out when None.
    """
    write_text(path, render_report(results, scenes, date=date))


def render_report(results: Mapping[str, Any], scenes: Sequence[ScenePanel], *, date: str | None = None) -> str:
    """The page as text; arguments as for ``write_report``."""
    context = _summary(results) | _measurements(results) | _figures(results)
    template = page_environment().get_template("report.html.j2")
    style = inline_file("report.css")
    return template.render(results=results, date=date, style=style, domains=_scenes(results, scenes), **context)


def page_environment() -> Environment:
    """Jinja for the pages: everything is escaped, an unknown name is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, count=count, duration=duration, classes=class_list)
    return environment


def inline_file(name: str) -> Markup:
    """A style sheet or script of this folder, to stand inside a page."""
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _summary(results: Mapping[str, Any]) -> dict[str, Any]:
    stages, tasks = results["stages"], results["series"]["tasks"]
    joint = stages[0]["task"] == 0
    colours = class_colours(results["series"]["classes"])
    return {
        "joint": joint,
        "reference": (results.get("reference") or {}).get("kind") or "none",
        "unfinished": not joint and len(stages) < len(tasks),
        "done": len(tasks) if joint else len(stages),
        "chips": {name: (colour, text_colour(colour)) for name, colour in colours.items()},
        "tiles": [_index_line(results, name) for key in _TILES for name in INDEX_NAMES if name.key == key],
        "settings": list(flat_settings(results.get("settings") or {})),
        "versions": results.get("versions") or {},
        "timing": results.get("timing") or {},
    }


def _measurements(results: Mapping[str, Any]) -> dict[str, Any]:
    stages = results["stages"]
    titles = {stage["task"]: stage_title(results, stage["task"]) for stage in stages}
    block = index_block(results, "map50")
    return {
        "indices": [_index_line(results, name) for name in (*INDEX_NAMES, MEAN_MAP)],
        "terms": [
            (key.upper(), slice_label(term["domain"], term["classes"]), term["task"], term["value"])
            for key in ("ri", "gi")
            for term in block.get(key) or ()
        ],
        "published": published_rows(results),
        "skipped": skipped_lines(results),
        "intervals": interval_lines(results),
        "own_images": ((results.get("settings") or {}).get("evaluation") or {}).get("drop_images_without_class", False),
        "few_boxes": few_boxes_lines(results),
        "slices": [(titles[stage["task"]], slice_rows(results, stage["task"])) for stage in stages],
        "conflicts": sign_conflict_rates(results),
        "stage_costs": [
            (titles[stage["task"]], stage.get("timing") or {}, stage.get("peak_memory_mb")) for stage in stages
        ],
    }


def _figures(results: Mapping[str, Any]) -> dict[str, Any]:
    tasks = [stage["task"] for stage in results["stages"]]
    grids = {f"grid{task}": plots.grid_figure(results, [task]) for task in tasks}
    losses = {f"loss{task}": plots.loss_figure(results, task) for task in tasks}
    return {
        "grid_plots": _all_svg(grids, "mAP50 of every task's classes in every domain"),
        "loss_plots": _all_svg(losses, "Losses of each epoch of a stage"),
        "forgetting_plot": inline_svg(
            "forgetting", plots.forgetting_figure(results), "mAP50 of each task over the stages"
        ),
        "boxes_plot": inline_svg("boxes", plots.old_boxes_figure(results), "Old boxes found, misnamed and missed"),
        "alpha_plot": inline_svg("alpha", plots.alpha_figure(results), "Merge weight alpha of each layer"),
    }


def _all_svg(figures: Mapping[str, Figure | None], description: str) -> list[Markup]:
    return [inline_svg(name, figure, description) for name, figure in figures.items() if figure is not None]


def inline_svg(name: str, figure: Figure | None, description: str) -> Markup | None:
    """A figure as an element of the page, None for none; arguments as for ``figures.to_svg``."""
    # Matplotlib has escaped the names inside.
    return None if figure is None else Markup(to_svg(figure, name, description))


def _index_line(results: Mapping[str, Any], name: IndexName) -> dict[str, Any]:
    values = {metric: index_value(results, name.key, metric) for metric in METRICS}
    capped = index_value(results, f"{name.key}_capped", "map50")
    ends = {f"{metric}_interval": interval_text(index_interval(results, name.key, metric)) for metric in METRICS}
    return {"name": name, **values, **ends, "capped": capped}


def _scenes(results: Mapping[str, Any], scenes: Sequence[ScenePanel]) -> list[tuple[str, list[list[Picture]]]]:
    """The drawn scenes by domain, in the order of the series."""
    order = dict.fromkeys((*results["series"]["domains"], *(scene.domain for scene in scenes)))
    domains = []
    for domain in order:
        drawn = [_pictures(results, scene) for scene in scenes if scene.domain == domain]
        if drawn:
            domains.append((domain, drawn))
    return domains


def _pictures(results: Mapping[str, Any], scene: ScenePanel) -> list[Picture]:
    """Ground truth, after the first stage, at the end; without the middle one when there is one stage only."""
    stages = [stage["task"] for stage in results["stages"]]
    colours = class_colours(results["series"]["classes"])
    pictures = [truth_picture(scene.image_rgb, scene.ground_truth, colours, _SCENE_PIXELS)]
    finished = stages == [0] or len(stages) == len(results["series"]["tasks"])
    columns = [("At the end" if finished else f"After task {stages[-1]}", stages[-1], scene.final)]
    if len(stages) > 1:
        columns.insert(0, (f"After task {stages[0]}", stages[0], scene.after_first))
    for heading, task, detections in columns:
        verdict = judge(detections, scene.ground_truth, learned_classes(results, task))
        image = draw_verdict(scene.image_rgb, verdict, colours, _SCENE_PIXELS)
        pictures.append(embedded_picture(image, heading, verdict.caption))
    return pictures


def truth_picture(image_rgb: np.ndarray, boxes: Sequence[DrawnBox], colours: Mapping[str, str], size: int) -> Picture:
    """The ground truth of the classes that have a colour; a picture may show objects of no task."""
    wanted = [box for box in boxes if box.label in colours]
    drawn = draw_truth(image_rgb, wanted, colours, size)
    return embedded_picture(drawn, "Ground truth", counted(len(wanted), "object"))


def embedded_picture(image: Image.Image, heading: str, caption: str) -> Picture:
    """A drawn picture as a JPEG inside the page."""
    data = io.BytesIO()
    # Full colour resolution: thin coloured outlines smear without it.
    image.save(data, **_JPEG)
    url = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return Picture(url, image.width, image.height, heading, caption)


def flat_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Dotted names and values of nested settings."""
    for name, value in flat(settings).items():
        yield name, _setting(value)


def _setting(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)
