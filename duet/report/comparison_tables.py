"""A comparison as a table: for the terminal, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from duet.report.comparison_noise import Estimate
from duet.report.comparison_parts import heat_maps
from duet.report.comparison_rows import COMPARED, KIND_NOTES, METRICS, ComparedBlock, ComparedRow, best_label
from duet.report.comparison_verdicts import verdict_of
from duet.report.interval_rows import interval_text
from duet.report.rows import ABSENT, IndexName, counted, duration, grid_values, number
from duet.report.tables import titled_table

SHOWN = ("overall", "rai", "ni", "avg_ri", "avg_gi", "forgetting", "mean_map")
COLUMNS = tuple(name for name in COMPARED if name.key in SHOWN)
_CSV_HEAD = ("series", "detector", "label", "kind", "status", "seed", "metric", "index", "value", "sd", "low", "high")
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"|": r"\textbar{}", "−": "$-$"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "±": r"$\pm$", "·": r"\textperiodcentered{}"},
}


def comparison_table(blocks: Sequence[ComparedBlock]) -> Group:
    """For the terminal: a table per block, what failed with its last log lines, and the closing sentence."""
    return Group(*(_terminal_block(block) for block in blocks))


def comparison_csv(blocks: Sequence[ComparedBlock]) -> str:
    """One line per block, method, metric and index: one per seed, then one named ``mean`` with sd and interval.

    The index ``final/comic/2`` is the mAP of task 2's classes in the domain comic after the last task, one line per
    seed. Failed and pending cells have one line each, without a value.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for block in blocks:
        for row in block.rows:
            for line in _csv_lines(row):
                writer.writerow((block.series, block.detector, row.label, row.kind, *line))
    return text.getvalue()


def comparison_markdown(blocks: Sequence[ComparedBlock]) -> str:
    """Per block: mean ± sd (mAP50) with the interval in brackets, the final grid, and the closing sentence."""
    return "\n".join(_markdown_block(block) for block in blocks)


def comparison_latex(blocks: Sequence[ComparedBlock]) -> str:
    """A booktabs table per block: mean ± sd, the best exemplar-free method bold, upper bounds set apart."""
    return "\n".join(_latex_block(block) for block in blocks)


def latex_escape(text: str) -> str:
    """The text as LaTeX prints it, each special character replaced once."""
    return "".join(_LATEX.get(character, character) for character in text)


def spread_text(found: Estimate | None, name: IndexName) -> str:
    """Such as ``0.512 ± 0.010``; seconds as a duration; a dash when absent; fewer seeds than the row's are named."""
    if found is None:
        return ABSENT
    show = duration if name.key == "train_seconds" else number
    text = show(found.mean) if found.sd is None else f"{show(found.mean)} ± {show(found.sd)}"
    known = sum(value is not None for value in found.values)
    return text if known == len(found.values) else f"{text} ({known} of {len(found.values)} seeds)"


def estimate_interval(found: Estimate | None) -> str:
    """Such as ``[0.490, 0.534]``; empty without an interval."""
    return "" if found is None or found.low is None or found.high is None else interval_text((found.low, found.high))


def failure_lines(block: ComparedBlock) -> list[str]:
    """One line per failed cell, followed by its last log lines, indented."""
    lines = []
    for run in (run for row in block.rows for run in row.failed):
        lines.append(f"{run.label}, seed {run.seed} failed: {run.error or 'no reason was recorded'}")
        lines += [f"  {line}" for line in run.log_tail]
    return lines


def absent_lines(block: ComparedBlock) -> list[str]:
    """One line per shown index that has no value on some resamples of the test images; its interval is without them."""
    lines = []
    for row in block.rows:
        for name in COLUMNS:
            found = row.indices["map50"][name.key]
            if found is not None and found.absent and estimate_interval(found):
                resamples = counted(found.absent, "resample")
                lines.append(f"{row.label}, {name.title}: {resamples} without a value, left out of the interval")
    return lines


def block_title(block: ComparedBlock) -> str:
    """Such as ``demo · yolo11n · reference joint``."""
    references = " and ".join(block.references)
    return f"{block.series} · {block.detector}" + (f" · reference {references}" if references else "")


def _terminal_block(block: ComparedBlock) -> Group:
    table = titled_table(block_title(block))
    table.collapse_padding = True
    table.add_column("Method", overflow="fold")
    table.add_column("Seeds", justify="right")
    for name in COLUMNS:
        table.add_column(name.title, justify="right", overflow="fold", min_width=6)
    _add_rows(table, block.rivals, {name.key: best_label(block.rivals, name.key) for name in COLUMNS})
    table.add_section()
    _add_rows(table, block.upper_bounds, {})
    table.caption = escape(" · ".join(f"{row.label}: {KIND_NOTES[row.kind]}" for row in block.upper_bounds)) or None
    failures = [f"[red]{escape(line)}[/]" for line in failure_lines(block)]
    absent = [escape(line) for line in absent_lines(block)]
    return Group(table, *failures, *absent, escape(verdict_of(block).sentence), "")


def _add_rows(table: Table, rows: Sequence[ComparedRow], best: Mapping[str, str | None]) -> None:
    for row in rows:
        cells = []
        for name in COLUMNS:
            # In a narrow terminal the spread moves as a whole to a line of its own.
            text = spread_text(row.indices["map50"][name.key], name).replace("± ", "±")
            cells.append(f"[bold]{text}[/]" if best.get(name.key) == row.label else text)
        table.add_row(escape(row.label), _seeds(row), *cells)


def _seeds(row: ComparedRow) -> str:
    missing = len(row.failed) + len(row.pending)
    return f"{len(row.finished)} of {len(row.finished) + missing}" if missing else str(len(row.finished))


def _csv_lines(row: ComparedRow) -> Iterator[tuple[object, ...]]:
    for metric in METRICS:
        for name in COMPARED:
            found = row.indices[metric][name.key]
            values = found.values if found else (None,) * len(row.seeds)
            for seed, value in zip(row.seeds, values):
                yield "finished", seed, metric, name.key, _cell(value), "", "", ""
            if found:
                numbers = (_cell(value) for value in (found.mean, found.sd, found.low, found.high))
                yield "finished", "mean", metric, name.key, *numbers
    for run in row.finished:
        for metric in METRICS:
            for (domain, task), value in grid_values(run.results["stages"][-1], metric).items():
                yield "finished", run.seed, metric, f"final/{domain}/{task}", _cell(value), "", "", ""
    for run in row.failed:
        yield "failed", run.seed, "", "", "", "", "", ""
    for seed in row.pending:
        yield "pending", seed, "", "", "", "", "", ""


def _cell(value: float | None) -> object:
    return "" if value is None else value


def _markdown_block(block: ComparedBlock) -> str:
    head = ["Method", "Seeds", *(name.title for name in COLUMNS)]
    lines = [f"### {_markdown(block_title(block))}", "", f"| {' | '.join(head)} |"]
    lines.append("|---|--:|" + "--:|" * len(COLUMNS))
    best = {name.key: best_label(block.rivals, name.key) for name in COLUMNS}
    for row in (*block.rivals, *block.upper_bounds):
        cells = []
        for name in COLUMNS:
            found = row.indices["map50"][name.key]
            text = spread_text(found, name)
            text = f"**{text}**" if best[name.key] == row.label and row.kind == "method" else text
            interval = estimate_interval(found)
            cells.append(f"{text} {interval}" if interval else text)
        note = f" ({KIND_NOTES[row.kind]})" if KIND_NOTES[row.kind] else ""
        lines.append(f"| {_markdown(row.label)}{note} | {_seeds(row)} | {' | '.join(cells)} |")
    lines += _markdown_grid(block)
    failures = failure_lines(block)
    if failures:
        lines += ["", "```", *failures, "```"]
    for line in absent_lines(block):
        lines += ["", _markdown(line)]
    return "\n".join([*lines, "", _markdown(verdict_of(block).sentence), ""])


def _markdown_grid(block: ComparedBlock) -> list[str]:
    """The class × domain grid after the last task, one line per method; empty when no method has one."""
    maps = heat_maps(block)
    if not maps:
        return []
    cells = [(place, domain) for place in range(len(maps[0].rows[0][1])) for domain, _ in maps[0].rows]
    head = ["Method", *(f"Task {place + 1}, {_markdown(domain)}" for place, domain in cells)]
    lines = ["", "mAP50 after the last task, mean over seeds, by the classes of each task in each domain:", ""]
    lines += [f"| {' | '.join(head)} |", "|---|" + "--:|" * len(cells)]
    for found in maps:
        by_domain = dict(found.rows)
        values = (number(by_domain[domain][place].value) for place, domain in cells)
        lines.append(f"| {_markdown(found.label)} | {' | '.join(values)} |")
    return lines


def _markdown(text: str) -> str:
    special = "\\`*_{}[]<>#|$"
    return "".join(f"\\{character}" if character in special else character for character in text)


def _latex_block(block: ComparedBlock) -> str:
    best = {name.key: best_label(block.rivals, name.key) for name in COLUMNS}
    caption = f"{block_title(block)}: mAP50, mean ± sd over seeds; best exemplar-free method bold, upper bounds below."
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex_escape(caption)}}}",
        f"\\begin{{tabular}}{{l{'r' * len(COLUMNS)}}}",
        "\\toprule",
        " & ".join(("Method", *(latex_escape(name.title) for name in COLUMNS))) + " \\\\",
        "\\midrule",
        *(_latex_row(row, best) for row in block.rivals),
    ]
    if block.upper_bounds:
        lines += ["\\midrule", *(_latex_row(row, {}) for row in block.upper_bounds)]
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(lines)


def _latex_row(row: ComparedRow, best: Mapping[str, str | None]) -> str:
    cells = []
    for name in COLUMNS:
        text = latex_escape(spread_text(row.indices["map50"][name.key], name).replace("-", "−"))
        cells.append(f"\\textbf{{{text}}}" if best.get(name.key) == row.label else text)
    note = f" ({KIND_NOTES[row.kind]})" if KIND_NOTES[row.kind] else ""
    return " & ".join((latex_escape(row.label) + note, *cells)) + " \\\\"
