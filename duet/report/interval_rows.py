"""The confidence intervals of a results mapping (docs/results.md), for terminal, CSV and page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duet.report.rows import INDEX_NAMES, MEAN_MAP, number

Interval = Sequence[float] | None


def has_intervals(results: Mapping[str, Any]) -> bool:
    """Whether the results hold confidence intervals."""
    return bool(results.get("intervals"))


def index_interval(results: Mapping[str, Any], key: str, metric: str) -> Interval:
    """Low and high end for one index (or ``mean_map``); None without intervals or where there is none."""
    return _indices(results, metric).get(key)


def term_interval(results: Mapping[str, Any], key: str, metric: str, place: int) -> Interval:
    """Low and high end for one term of ``ri`` or ``gi``, counted from 0."""
    terms = _indices(results, metric).get(key) or ()
    return terms[place] if place < len(terms) else None


def entry_interval(results: Mapping[str, Any], stage: int, part: str, place: int, metric: str) -> Interval:
    """Low and high end for an entry of a stage's ``slices`` or ``grid``; stage and place count from 0."""
    stages = (results.get("intervals") or {}).get("stages") or ()
    entries = stages[stage].get(part) or () if stage < len(stages) else ()
    return entries[place].get(metric) if place < len(entries) else None


def interval_text(interval: Interval) -> str:
    """Such as ``[0.881, 0.934]``; empty without an interval."""
    return "" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def interval_title(results: Mapping[str, Any]) -> str:
    """The name of a column of intervals, such as ``95 %``."""
    return f"{100 * results['intervals']['level']:g} %"


def interval_lines(results: Mapping[str, Any]) -> list[str]:
    """What the intervals are, and which of them leave out resamples; no line without intervals."""
    if not has_intervals(results):
        return []
    about = results["intervals"]
    title, resamples = interval_title(results), about["resamples"]
    lines = [
        f"Intervals: {title}, from {resamples} resamples of the test images; the detectors stay as they were trained, "
        "so the spread over seeds is not in them."
    ]
    for name in (*INDEX_NAMES, MEAN_MAP):
        missing = (about.get("absent") or {}).get("map50", {}).get(name.key)
        if missing:
            lines.append(f"{name.title}: {missing} of {resamples} resamples have no value and are not in its interval.")
    return lines


def _indices(results: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    return ((results.get("intervals") or {}).get("indices") or {}).get(metric) or {}
