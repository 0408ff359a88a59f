"""Tables for the terminal (rich) and results.csv; mAP and indices are fractions with three decimals."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from duet.evaluation.indices import METRICS
from duet.report.interval_rows import (
    Interval,
    entry_interval,
    has_intervals,
    index_interval,
    interval_lines,
    interval_text,
    interval_title,
    term_interval,
)
from duet.report.rows import (
    INDEX_NAMES,
    MEAN_MAP,
    SliceRow,
    class_list,
    count,
    few_boxes_lines,
    grid_values,
    index_block,
    index_value,
    learned_classes,
    number,
    sign_conflict_rates,
    skipped_lines,
    slice_rows,
    stage_of,
    stage_title,
)

_ROLE_STYLE = {"new": "green", "old": "yellow", "unseen": "cyan"}
_CSV_COLUMNS = ("stage", "kind", "role", "domain", "classes", "metric", "value", "low", "high")


def stage_table(results: Mapping[str, Any], task: int) -> Table:
    """The slices after one task: role, slice, mAP, images, boxes, reference and ratio.

    Old slices are compared with their own mAP right after the task that taught them, new and unseen ones with the
    run's reference; the ratio is that of mAP50.

    Args:
        results: the content of results.json, finished or not.
        task: number of the stage, from 1; 0 for a joint run.

    Raises:
        KeyError: when that stage is not in the results.
    """
    rows = slice_rows(results, task)
    table = titled_table(stage_title(results, task))
    table.add_column("Role", no_wrap=True)
    table.add_column("Slice", overflow="fold")
    for name in ("mAP50", "mAP50-95", "Images", "Boxes", "Reference", "Ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_slice_cells(row))
    table.caption = escape("\n".join(few_boxes_lines({**results, "stages": [stage_of(results, task)]}))) or None
    return table


def grid_table(results: Mapping[str, Any], task: int | None = None) -> Table:
    """The mAP50 of every task's classes (columns) in every domain (rows) after one stage.

    A dash stands for a cell without a test box, a dot for classes that are not learned yet; the cells that were
    trained (a task's classes in its own domain) are bold.

    Args:
        results: the content of results.json.
        task: number of the stage; the last one when None.

    Raises:
        KeyError: when that stage is not in the results.
    """
    stage = stage_of(results, task) if task is not None else results["stages"][-1]
    tasks, values = results["series"]["tasks"], grid_values(stage)
    known = set(learned_classes(results, stage["task"]))
    table = titled_table(f"mAP50 by domain and classes · {stage_title(results, stage['task'])}")
    table.add_column("Domain", overflow="fold")
    for item in tasks:
        table.add_column(escape(class_list(item["classes"])), justify="right", overflow="fold", min_width=5)
    for domain in results["series"]["domains"]:
        cells = [_grid_cell(values.get((domain, item["task"])), item, domain, known) for item in tasks]
        table.add_row(escape(domain), *cells)
    return table


def indices_table(results: Mapping[str, Any]) -> Table:
    """Every index for mAP50 and mAP50-95, the mean mAP over the grid, and the sign-conflict rate of each merge.

    Ratios are shares of a reference (1 = as good as it); forgetting, BWT, FWT and the mean are in mAP. Beside each
    stands its interval, where the results hold intervals. Terms that were left out of a mean stand below the table.
    """
    table = titled_table(_indices_title(results))
    table.add_column("Index", no_wrap=True)
    for title in ("mAP50", "mAP50-95"):
        table.add_column(title, justify="right", no_wrap=True)
        if has_intervals(results):
            table.add_column(interval_title(results), style="dim", no_wrap=True)
    table.add_column("Unit", style="dim", no_wrap=True)
    for name in (*INDEX_NAMES, MEAN_MAP):
        cells = [cell for metric in METRICS for cell in _index_cells(results, name.key, metric)]
        style = "bold" if name.key in ("overall", "rai", "ni") else ""
        table.add_row(name.title, *cells, "ratio" if name.ratio else "mAP", style=style)
    for task, rate in sign_conflict_rates(results):
        gap = [""] * (len(table.columns) - 3)
        table.add_row(f"Sign conflict, task {task}", number(rate), *gap, "share")
    table.caption = escape("\n".join([*interval_lines(results), *skipped_lines(results)])) or None
    return table


def results_csv(results: Mapping[str, Any]) -> str:
    """The results as tidy CSV: one value per line, absent values as an empty field.

    Columns: ``stage``, ``kind`` (slice, grid, merge, term, index), ``role`` (of a slice; ri or gi of a term; the
    index's key), ``domain``, ``classes`` (joined by ``|``), ``metric`` (map50, map50_95, images, boxes,
    sign_conflict_rate; for terms and indices the mAP they are made of), ``value``, ``low`` and ``high`` (the ends of
    its interval; empty without). The stage of an index is the last one.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for place in range(len(results["stages"])):
        writer.writerows(_stage_lines(results, place))
    for metric in METRICS:
        writer.writerows(_index_lines(results, metric))
    return text.getvalue()


def titled_table(title: str) -> Table:
    """An empty table in the style of all of them."""
    # A title is folded at the table's width; a narrow table is widened for it.
    return Table(
        title=escape(title),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        min_width=min(len(title) + 2, 78),
    )


def _slice_cells(row: SliceRow) -> tuple[str, ...]:
    style = _ROLE_STYLE.get(row.role, "")
    role = f"[{style}]{escape(row.role)}[/]" if style else escape(row.role)
    reference = number(row.reference) + (f" [dim]{escape(row.compared_with)}[/]" if row.compared_with else "")
    scores = (number(row.map50), number(row.map50_95), count(row.images), count(row.boxes))
    return role, escape(row.label), *scores, reference, number(row.ratio)


def _grid_cell(value: float | None, task: Mapping[str, Any], domain: str, known: set[str]) -> str:
    if not known.issuperset(task["classes"]):
        return "[dim]·[/]"
    return f"[bold]{number(value)}[/]" if task["domain"] == domain else number(value)


def _indices_title(results: Mapping[str, Any]) -> str:
    done, planned = len(results["stages"]), len(results["series"]["tasks"])
    joint = results["stages"][0]["task"] == 0
    state = "" if joint or done == planned else f" · unfinished: {done} of {planned} tasks"
    reference = (results.get("reference") or {}).get("kind") or "none"
    names = f"{results['series']['name']} · {results['detector']} · {results['method']} · seed {results['seed']}"
    return f"{names} · reference {reference}{state}"


def _index_cells(results: Mapping[str, Any], key: str, metric: str) -> list[str]:
    value = number(index_value(results, key, metric))
    return [value, escape(interval_text(index_interval(results, key, metric)))] if has_intervals(results) else [value]


def _stage_lines(results: Mapping[str, Any], place: int) -> Iterator[tuple[Any, ...]]:
    stage = results["stages"][place]
    task = stage["task"]
    for row, item in enumerate(stage["slices"]):
        for metric in ("map50", "map50_95", "images", "boxes"):
            ends = entry_interval(results, place, "slices", row, metric)
            yield _line(task, "slice", item["role"], item, metric, item.get(metric), ends)
    for row, cell in enumerate(stage.get("grid") or ()):
        for metric in METRICS:
            ends = entry_interval(results, place, "grid", row, metric)
            yield _line(task, "grid", "", cell, metric, cell[metric], ends)
    if stage.get("merge"):
        yield _line(task, "merge", "", {}, "sign_conflict_rate", stage["merge"].get("sign_conflict_rate"))


def _index_lines(results: Mapping[str, Any], metric: str) -> Iterator[tuple[Any, ...]]:
    block, last = index_block(results, metric), results["stages"][-1]["task"]
    for key in ("ri", "gi"):
        for place, term in enumerate(block.get(key) or ()):
            ends = term_interval(results, key, metric, place)
            yield _line(term["task"], "term", key, term, metric, term["value"], ends)
    for name in (*INDEX_NAMES, MEAN_MAP):
        ends = index_interval(results, name.key, metric)
        yield _line(last, "index", name.key, {}, metric, index_value(results, name.key, metric), ends)


def _line(
    task: int, kind: str, role: str, item: Mapping[str, Any], metric: str, value: Any, ends: Interval = None
) -> tuple[Any, ...]:
    classes = "|".join(item.get("classes", ()))
    shown = "" if value is None else value
    return task, kind, role, item.get("domain", ""), classes, metric, shown, *(ends or ("", ""))
