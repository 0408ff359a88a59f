"""Several runs side by side: one line per series, detector and method, means over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table

from duet.config import MethodSettings, TrainSettings, flat
from duet.state import digest_of

MOST_NAMED = 3  # settings in a line's name
COLUMNS = (
    ("Overall", "overall"),
    ("RAI", "rai"),
    ("NI", "ni"),
    ("Avg RI", "avg_ri"),
    ("Avg GI", "avg_gi"),
    ("Mean mAP", None),
)


def summary_rows(documents: Sequence[Mapping[str, Any]], metric: str = "map50") -> list[dict[str, Any]]:
    """Mean and standard deviation of the indices over the seeds of each (series, detector, method, settings).

    Args:
        documents: contents of results.json; runs that are not finished are refused.
        metric: ``map50`` or ``map50_95``.

    Returns:
        One mapping per line in order of appearance: ``series``, ``detector``, ``method`` (with the settings in which
        lines of one method differ), ``reference``, ``seeds``, and per column a (mean, standard deviation) pair; the
        deviation is None for one seed, the pair None when a seed has no value.

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
            digest_of(_settings(document)),
        )
        groups.setdefault(key, []).append(document)
        _refuse_unfinished(document, key)
    rows = []
    for key, runs in groups.items():
        seeds = [run["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{' '.join(key[:3])}: two runs have the same seed ({seeds})")
        values = {name: _pair([_value(run, field, metric) for run in runs]) for name, field in COLUMNS}
        names = {**dict(zip(("series", "detector", "method", "reference"), key)), "method": _label(key, groups)}
        rows.append({**names, "seeds": len(runs), **values})
    return rows


def _settings(document: Mapping[str, Any]) -> dict[str, Any]:
    """What may differ between lines of one series, detector and method, by dotted key; older runs lack later keys."""
    later = {"method": MethodSettings.AS_BEFORE, "train": TrainSettings.AS_BEFORE, "evaluation": {}}
    return flat({key: {**before, **document["settings"].get(key, {})} for key, before in later.items()})


def _label(key: tuple[str, ...], groups: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]]) -> str:
    """The method's name, and the settings in which its lines differ."""
    others = [_settings(runs[0]) for other, runs in groups.items() if other[:4] == key[:4]]
    own = _settings(groups[key][0])
    differing = [name for name in own if any(other.get(name) != own[name] for other in others)]
    shown = [f"{name}={json.dumps(own[name])}" for name in differing[:MOST_NAMED]]
    more = ["…"] if len(differing) > MOST_NAMED else []
    return f"{key[2]} ({', '.join([*shown, *more])})" if shown else key[2]


def summary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for the terminal."""
    table = Table("Series", "Detector", Column("Method", overflow="fold"), "Seeds")
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
