"""Assemble results.json (docs/results.md) from what the stages measured."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from duet import __version__
from duet.config import RunConfig
from duet.evaluation.indices import METRICS, compute_indices
from duet.evaluation.run import DomainScores, score_slice
from duet.series import RoleSlice, Series

SCHEMA = 1


def stage_entry(
    task: int,
    series: Series,
    slices: Sequence[RoleSlice],
    scores: Mapping[str, DomainScores],
    merge: Mapping[str, Any] | None,
    losses: Sequence[Mapping[str, float]],
    timing: Mapping[str, float],
) -> dict[str, Any]:
    """One element of ``stages``; ``peak_memory_mb`` is the process's own until then, whatever it did before."""
    return {
        "task": task,
        "slices": [{"role": item.role.value, **score_slice(scores, item.slice)} for item in slices],
        "grid": grid_cells(series, scores),
        "class_ap": class_cells(series, scores),
        "background": _background(series, scores, task or len(series)),
        "merge": dict(merge) if merge else None,
        "losses": [dict(epoch) for epoch in losses],
        "timing": {name: round(value, 3) for name, value in timing.items()},
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> int | None:
    """Largest resident memory that this process has had, MB of 2^20 bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def grid_cells(series: Series, scores: Mapping[str, DomainScores]) -> list[dict[str, Any]]:
    """The class × domain grid: every task's classes in every domain."""
    return [
        {
            "domain": domain,
            "task": number,
            "classes": list(task.classes),
            **_maps(scores[domain].score(task.classes)),
        }
        for domain in series.domains
        for number, task in enumerate(series.tasks, start=1)
    ]


def class_cells(series: Series, scores: Mapping[str, DomainScores]) -> list[dict[str, Any]]:
    """Average precision of each class in each domain, over all its test images."""
    cells = []
    for domain in series.test_domains:
        for name in series.classes:
            value = scores[domain].classes[name]
            cells.append(
                {
                    "domain": domain,
                    "class": name,
                    "ap50": value.ap50,
                    "ap50_95": value.ap50_95,
                    "boxes": value.boxes,
                }
            )
    return cells


def series_entry(series: Series, image_size: int) -> dict[str, Any]:
    """The ``series`` of results.json."""
    return {
        "name": series.name,
        "image_size": image_size,
        "classes": list(series.classes),
        "domains": list(series.domains),
        "tasks": [
            {"task": number, "domain": task.domain, "classes": list(task.classes)}
            for number, task in enumerate(series.tasks, start=1)
        ],
    }


def results_document(
    config: RunConfig,
    series: Series,
    stages: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Any],
    timing: Mapping[str, float],
) -> dict[str, Any]:
    """The whole document, indices included."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "series": series_entry(series, config.train.image_size),
        "detector": config.detector,
        "method": config.method.name,
        "seed": config.seed,
        "settings": config.settings(),
        "versions": versions(),
        "reference": dict(reference),
        "stages": [dict(stage) for stage in stages],
        "timing": {name: round(value, 3) for name, value in timing.items()},
    }
    document["indices"] = {metric: compute_indices(document, metric).to_dict() for metric in METRICS}
    return document


def versions() -> dict[str, str]:
    """Versions that decide the numbers."""
    found = {"python": platform.python_version(), "duet": __version__}
    for name in (
        "torch",
        "ultralytics",
        "numpy",
        "opencv-python",
        "pycocotools",
        "faster-coco-eval",
        "albumentations",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _maps(score: Mapping[str, Any]) -> dict[str, Any]:
    return {"map50": score["map50"], "map50_95": score["map50_95"]}


def _background(series: Series, scores: Mapping[str, DomainScores], task: int) -> list[dict[str, Any]]:
    cells = []
    for domain in series.domains:
        for name in series.classes_until(task):
            found, missed, wrong = scores[domain].background[name]
            boxes = found + missed + wrong
            cells.append(
                {
                    "domain": domain,
                    "class": name,
                    "boxes": boxes,
                    "found": found,
                    "missed": missed,
                    "wrong_class": wrong,
                }
            )
    return cells
