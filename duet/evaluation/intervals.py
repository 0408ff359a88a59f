"""Confidence intervals of every mAP and every index of a run, by the bootstrap over its test images.

The run is scored again on each resample of the test images, and the indices are computed from those scores by
``indices.compute_indices``. What varies is the choice of test images; the trained detectors stay as they are, so the
spread over seeds is not in these intervals (``difference`` joins both). They are percentile intervals (Efron and
Tibshirani, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from duet.datasets.images import LabelledImage
from duet.evaluation.bootstrap import SEED, image_weights
from duet.evaluation.difference import LEVEL
from duet.evaluation.indices import METRICS, Indices, compute_indices, mean_map
from duet.evaluation.replicates import RunDetections, ScoredEntry, ScoredRun, Weighting, score_weighted
from duet.state import write_atomic

TERMS = ("ri", "gi")
MEAN_MAP = "mean_map"
SCALARS = (*(item.name for item in fields(Indices) if item.name not in ("tasks", "skipped", *TERMS)), MEAN_MAP)


@dataclass(frozen=True)
class RunReplicates:
    """A run scored on B resamples of its test images.

    Args:
        intervals: the ``intervals`` of results.json (docs/results.md).
        indices: (B,) float64 by ``metric/index``, such as ``map50/overall``; NaN where a resample has no value. An
            index without any value is left out.
    """

    intervals: dict[str, Any]
    indices: dict[str, np.ndarray]


def run_replicates(
    results: Mapping[str, Any],
    found: RunDetections,
    images: Mapping[str, Sequence[LabelledImage]],
    resamples: int,
    own_images: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> RunReplicates:
    """Score a run on resamples of its test images, and take the intervals.

    Args:
        results: the content of results.json.
        found: detections of its stages and references.
        images: test images by domain.
        resamples: B, at least 1.
        own_images: slices are scored on the images that have one of their classes (``drop_images_without_class``);
            the whole test split is resampled, and the images are chosen after that.
        progress: called ``steps`` times.

    Raises:
        ValueError: when the number of resamples is below 1, detections are missing or are for other images, or they
            do not give the mAP that the results hold.
    """
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, got {resamples}")
    weights = {name: image_weights(name, len(items), resamples) for name, items in images.items()}
    weights = {name: np.concatenate([np.ones_like(drawn[:1]), drawn]) for name, drawn in weights.items()}
    weighting = Weighting(results["series"]["classes"], images, weights, own_images, progress)
    scored = score_weighted(results, found, weighting)
    indices = _index_replicates(results, scored, resamples)
    intervals = {
        "resamples": resamples,
        "level": LEVEL,
        "seed": SEED,
        "images": {name: len(items) for name, items in images.items()},
        "indices": {metric: _index_intervals(metric, indices) for metric in METRICS},
        "absent": {metric: _absent(metric, indices) for metric in METRICS},
        "stages": [{"task": task, **_part_intervals(parts)} for task, parts in scored.stages],
        "reference": _part_intervals(scored.reference),
    }
    scalars = {key: values for key, values in indices.items() if key.split("/")[1] in SCALARS}
    return RunReplicates(intervals, {key: values for key, values in scalars.items() if np.isfinite(values).any()})


def steps(found: RunDetections) -> int:
    """How often ``run_replicates`` calls ``progress``."""
    return sum(len(stage) for stage in found.stages) + len(found.reference)


def store_replicates(replicates: RunReplicates, path: Path) -> None:
    """Write the replicate values of each index as safetensors, atomically; metadata say how they were drawn."""
    about = {key: str(replicates.intervals[key]) for key in ("resamples", "seed", "level")}
    write_atomic(path, lambda temporary: save_file(replicates.indices, temporary, about))


def _index_replicates(results: Mapping[str, Any], scored: ScoredRun, resamples: int) -> dict[str, np.ndarray]:
    """By ``metric/index`` (B,), for ri and gi (B, terms)."""
    rows: dict[str, list[Any]] = {}
    for document in _documents(results, scored, resamples):
        for metric in METRICS:
            found = compute_indices(document, metric)
            values = {name: getattr(found, name) for name in SCALARS if name != MEAN_MAP}
            values[MEAN_MAP] = mean_map(document, metric)
            values |= {name: [term.value for term in getattr(found, name) or ()] for name in TERMS}
            for name, value in values.items():
                rows.setdefault(f"{metric}/{name}", []).append(value)
    return {key: np.array(values, dtype=np.float64) for key, values in rows.items()}  # None becomes NaN


def _documents(results: Mapping[str, Any], scored: ScoredRun, resamples: int) -> Iterator[dict[str, Any]]:
    """What the indices are made of, for each resample in turn; one mapping whose values change."""
    filled: list[tuple[dict[str, Any], str, list[float | None]]] = []

    def blank(parts: Mapping[str, Sequence[ScoredEntry]]) -> dict[str, list[dict[str, Any]]]:
        made: dict[str, list[dict[str, Any]]] = {}
        for part, entries in parts.items():
            made[part] = [dict(entry.names) for entry in entries]
            for copy, entry in zip(made[part], entries):
                for key, column in zip(entry.keys, entry.values[1:].T):
                    filled.append((copy, key, [None if value != value else value for value in column.tolist()]))
        return made

    stages = [{"task": task, **blank(parts)} for task, parts in scored.stages]
    document = {"series": results["series"], "stages": stages, "reference": blank(scored.reference)}
    for row in range(resamples):
        for copy, key, values in filled:
            copy[key] = values[row]
        yield document


def _index_intervals(metric: str, indices: Mapping[str, np.ndarray]) -> dict[str, Any]:
    block: dict[str, Any] = {name: _interval(indices[f"{metric}/{name}"]) for name in SCALARS}
    return block | {name: [_interval(column) for column in indices[f"{metric}/{name}"].T] for name in TERMS}


def _absent(metric: str, indices: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many resamples have no value of an index, for the indices that some have one of."""
    missing = {name: np.isnan(indices[f"{metric}/{name}"]) for name in SCALARS}
    return {name: int(rows.sum()) for name, rows in missing.items() if rows.any() and not rows.all()}


def _part_intervals(parts: Mapping[str, Sequence[ScoredEntry]]) -> dict[str, list[dict[str, Any]]]:
    return {part: [_entry_intervals(entry) for entry in entries] for part, entries in parts.items()}


def _entry_intervals(entry: ScoredEntry) -> dict[str, Any]:
    values = entry.values[1:]
    absent = int(np.isnan(values[:, 0]).sum())
    ends = {key: _interval(column) for key, column in zip(entry.keys, values.T)}
    return {**entry.names, **ends} | ({"absent": absent} if absent else {})


def _interval(values: np.ndarray) -> list[float] | None:
    """Ends of the percentile interval of the values that are there; None when none is."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    tail = 50 * (1 - LEVEL)
    return [float(end) for end in np.percentile(values, [tail, 100 - tail])]
