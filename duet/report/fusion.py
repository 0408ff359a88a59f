"""The results of a fusion as a table, CSV, figures and one HTML page."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from duet.config import flat
from duet.report.figures import STYLE, light_grid, line_colour, new_figure, to_svg
from duet.state import write_json, write_text

_POINTS = 20  # of a curve: means over neighbouring steps, since a batch alone says little


def write_fusion(results: Mapping[str, Any], folder: Path) -> None:
    """Write results.json, results.csv, table.md, config.yaml and fuse.html.

    Args:
        results: what :func:`merging.fusion.run.fuse` returns.
        folder: of the run; created when absent.

    Raises:
        OSError: when a file cannot be written.
    """
    write_json(folder / "results.json", results)
    write_text(folder / "results.csv", fusion_csv(results))
    write_text(folder / "table.md", fusion_markdown(results))
    write_text(folder / "config.yaml", yaml.safe_dump(dict(results["settings"]), sort_keys=False, allow_unicode=True))
    write_text(folder / "fuse.html", render_fusion(results))


def fusion_markdown(results: Mapping[str, Any]) -> str:
    """Accuracy in percent: one line per method, one column per task, the mean, and the mean share of the own models."""
    tasks = [task["name"] for task in results["tasks"]]
    lines = [
        "| Method | " + " | ".join(tasks) + " | Average | Normalised |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for line in results["methods"]:
        cells = [_percent(line["accuracy"][task]) for task in tasks]
        cells += [_percent(line["average"]), _percent(line["average_normalised"])]
        lines.append(f"| {line['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def fusion_summary(documents: Sequence[Mapping[str, Any]]) -> str:
    """Several seeds of one fusion: mean accuracy in percent per method and task, and the deviation of the average.

    Args:
        documents: contents of results.json, of one fusion with the same tasks and methods.

    Returns:
        A Markdown table.

    Raises:
        ValueError: when the documents differ in name, tasks or methods, or two have the same seed.
    """
    first = documents[0]
    tasks, methods = [task["name"] for task in first["tasks"]], [line["method"] for line in first["methods"]]
    for document in documents:
        names = [task["name"] for task in document["tasks"]], [line["method"] for line in document["methods"]]
        if document["name"] != first["name"] or names != (tasks, methods):
            raise ValueError(f"'{document['name']}' and '{first['name']}': expected the same fusion, tasks and methods")
    seeds = [document["seed"] for document in documents]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{first['name']}: two fusions have the same seed ({seeds})")
    lines = ["| Method | " + " | ".join(tasks) + " | Average | Normalised |", "|---" * (len(tasks) + 3) + "|"]
    for rows in zip(*(document["methods"] for document in documents)):
        cells = [_percent(statistics.fmean(row["accuracy"][task] for row in rows)) for task in tasks]
        averages = [row["average"] for row in rows]
        spread = f" ± {100 * statistics.stdev(averages):.1f}" if len(rows) > 1 else ""
        shares = [row["average_normalised"] for row in rows]
        share = None if None in shares else statistics.fmean(shares)
        cells += [_percent(statistics.fmean(averages)) + spread, _percent(share)]
        lines.append(f"| {rows[0]['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def fusion_csv(results: Mapping[str, Any]) -> str:
    """One line per method and task: accuracy from 0 to 1, and over that of the task's own model."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "seed", "method", "task", "accuracy", "normalised"))
    for line in results["methods"]:
        for task, value in line["accuracy"].items():
            share = line["normalised"][task]
            writer.writerow((results["name"], results["seed"], line["method"], task, value, share))
    return text.getvalue()


def render_fusion(results: Mapping[str, Any]) -> str:
    """The HTML page as text; it loads nothing from anywhere."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    figures = {
        "entropy": (entropy_figure(results), "Mean entropy per task over the steps"),
        "curve": (accuracy_figure(results), "Mean accuracy over the steps"),
        "scaling": (scaling_figure(results), "Mean accuracy over the scaling factor"),
        "density": (density_figure(results), "Expected density of the mask per tensor"),
    }
    drawn = {
        name: None if figure is None else Markup(to_svg(figure, name, what)) for name, (figure, what) in figures.items()
    }
    merged = [line for line in results["methods"] if line["method"] not in ("individual", "pretrained")]
    return environment.get_template("fuse.html.j2").render(
        results=results,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        tasks=[task["name"] for task in results["tasks"]],
        best=max(merged, key=lambda line: line["average"], default=None),
        settings=_setting_rows(results["settings"]),
        **drawn,
    )


@matplotlib.rc_context(STYLE)
def entropy_figure(results: Mapping[str, Any]) -> Figure | None:
    """Losses of the trained methods, summed over tasks, smoothed over a few steps."""
    curves = [(line["label"], [sum(row) for row in line["losses"]]) for line in results["methods"] if line["losses"]]
    if not curves:
        return None
    return _lines([(label, *_smoothed(values)) for label, values in curves], "step", "entropy, nats, sum over tasks")


@matplotlib.rc_context(STYLE)
def accuracy_figure(results: Mapping[str, Any]) -> Figure | None:
    """Mean test accuracy of the trained methods where it was measured on the way."""
    curves = []
    for line in results["methods"]:
        if line["curve"]:
            values = [sum(point["accuracy"].values()) / len(point["accuracy"]) for point in line["curve"]]
            curves.append((line["label"], [point["step"] for point in line["curve"]], [100 * v for v in values]))
    return _lines(curves, "step", "mean accuracy, %") if curves else None


@matplotlib.rc_context(STYLE)
def scaling_figure(results: Mapping[str, Any]) -> Figure | None:
    """Mean accuracy of each scaling factor that was tried."""
    curves = []
    for line in results["methods"]:
        tried = sorted(line["scaling_factors"], key=lambda point: point["factor"])
        if len(tried) > 1:
            points = [100 * point["average"] for point in tried]
            curves.append((line["label"], [point["factor"] for point in tried], points))
    return _lines(curves, "scaling factor λ", "mean accuracy, %") if curves else None


@matplotlib.rc_context(STYLE)
def density_figure(results: Mapping[str, Any]) -> Figure | None:
    """Expected density of the mask per tensor, in the order of the model."""
    curves = [
        (line["label"], list(range(1, len(line["density"]) + 1)), list(line["density"].values()))
        for line in results["methods"]
        if line["density"]
    ]
    return _lines(curves, "tensor, from input to output", "mean of σ(x)") if curves else None


def _lines(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], across: str, up: str) -> Figure:
    figure = new_figure(7.2, 3.4)
    axes = figure.add_subplot()
    for position, (label, places, values) in enumerate(curves):
        mark = "o" if len(places) < 15 else None
        axes.plot(places, values, color=line_colour(position), label=label, marker=mark, markersize=3.5)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    light_grid(axes)
    axes.legend(loc="best")
    return figure


def _smoothed(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over neighbouring steps, at most ``_POINTS`` of them: a batch alone says little."""
    width = max(1, len(values) // _POINTS)
    parts = [values[start : start + width] for start in range(0, len(values), width)]
    places = [start + (len(part) + 1) / 2 for start, part in zip(range(0, len(values), width), parts)]
    return places, [sum(part) / len(part) for part in parts]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _setting_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the settings; the tasks stand elsewhere on the page."""
    named = {name: value for name, value in flat(settings).items() if name.rpartition(".")[2] != "tasks"}
    return [(name, "" if value is None else str(value)) for name, value in named.items()]
