"""Several runs side by side: one line per series, detector and method, means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

COLUMNS = (
    ("Overall", "overall"),
    ("RAI", "rai"),
    ("NI", "ni"),
    ("Avg RI", "avg_ri"),
    ("Avg GI", "avg_gi"),
    ("Mean mAP", None),
)


def summary_rows(documents: Sequence[Mapping[str, Any]], metric: str = "map50") -> list[dict[str, Any]]:
    """Mean and standard deviation of the indices over the seeds of each (series, detector, method).

    Args:
        documents: contents of results.json; runs that are not finished are refused.
        metric: ``map50`` or ``map50_95``.

    Returns:
        One mapping per line in order of appearance: ``series``, ``detector``, ``method``, ``reference``, ``seeds``, and
        per column a (mean, standard deviation) pair; the deviation is None for one seed, the pair None when a seed has
        no value.

    Raises:
        ValueError: when a run is unfinished, or two runs of a line have the same seed.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for document in documents:
        key = (
            document["series"]["name"],
            document["detector"],
            document["method"],
            document["reference"]["kind"],
        )
        groups.setdefault(key, []).append(document)
        _refuse_unfinished(document, key)
    rows = []
    for key, runs in groups.items():
        seeds = [run["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{' '.join(key[:3])}: two runs have the same seed ({seeds})")
        values = {name: _pair([_value(run, field, metric) for run in runs]) for name, field in COLUMNS}
        rows.append({**dict(zip(("series", "detector", "method", "reference"), key)), "seeds": len(runs), **values})
    return rows


def summary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for the terminal."""
    table = Table("Series", "Detector", "Method", "Seeds")
    for name, _ in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [_cell(row[name]) for name, _ in COLUMNS]
        table.add_row(row["series"], row["detector"], row["method"], str(row["seeds"]), *cells)
    return table


def summary_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    names = [name for name, _ in COLUMNS]
    lines = ["| Method | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in rows:
        lines.append(f"| `{row['method']}` | " + " | ".join(_cell(row[name]) for name in names) + " |")
    return "\n".join(lines)


def _refuse_unfinished(document: Mapping[str, Any], key: Sequence[str]) -> None:
    wanted = 1 if document["settings"]["method"]["joint"] else len(document["series"]["tasks"])
    if len(document["stages"]) < wanted:
        raise ValueError(
            f"{' '.join(key[:3])}, seed {document['seed']}: finished {len(document['stages'])} of {wanted} stages"
        )


def _value(document: Mapping[str, Any], field: str | None, metric: str) -> float | None:
    if field is not None:
        return document["indices"][metric][field]
    cells = [cell[metric] for cell in document["stages"][-1]["grid"] if cell[metric] is not None]
    return statistics.fmean(cells) if cells else None


def _pair(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    if any(value is None for value in values):
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _cell(pair: tuple[float, float | None] | None) -> str:
    if pair is None:
        return "–"
    mean, deviation = pair
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"
