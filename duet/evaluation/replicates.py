"""A run scored again under many weightings of its test images: every mAP of its results, once per weighting.

All stages and references are scored on the same weightings, so that ratios and differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duet.datasets.images import LabelledImage
from duet.detectors.base import Detections
from duet.evaluation.bootstrap import average_precisions
from duet.evaluation.matches import ClassMatches, class_matches
from duet.series import Slice

_CLASS_KEYS = ("ap50", "ap50_95")
_SLICE_KEYS = ("map50", "map50_95")
_NAMES = ("role", "domain", "task", "classes", "class")
_SAME = 1e-9  # between an mAP of the results and the same one from the stored detections


@dataclass(frozen=True)
class RunDetections:
    """What the detectors of a run found on its test images.

    Args:
        stages: per stage, by domain, one entry per test image.
        reference: the references', by ``joint/DOMAIN`` or ``individual/SLICE``; empty without a reference.
    """

    stages: Sequence[Mapping[str, Sequence[Detections]]]
    reference: Mapping[str, Sequence[Detections]]


@dataclass(frozen=True)
class ScoredEntry:
    """An entry of the results (a slice, a grid cell or a class) and its values under W weightings.

    Args:
        names: what tells it from others: role, domain, task, classes or class.
        keys: its two metrics, at IoU 0.5 and the mean over 0.5 … 0.95.
        values: (W, 2) float64, NaN where the weighted images have no box of its classes.
    """

    names: Mapping[str, Any]
    keys: tuple[str, str]
    values: np.ndarray

    @property
    def label(self) -> str:
        """Domain and classes as short text."""
        return Slice(self.names["domain"], tuple(self.names.get("classes") or [self.names["class"]])).label


@dataclass(frozen=True)
class ScoredRun:
    """Every entry of a run's results that an index may need; the parts are named as in results.json.

    Args:
        stages: per stage its number and, by part (slices, grid, class_ap), the entries.
        reference: by part (slices, grid), the entries.
    """

    stages: Sequence[tuple[int, Mapping[str, Sequence[ScoredEntry]]]]
    reference: Mapping[str, Sequence[ScoredEntry]]


@dataclass(frozen=True)
class Weighting:
    """The weightings under which a run is scored.

    Args:
        classes: all classes of the series.
        images: test images by domain.
        weights: by domain (W, N), how often each image counts; row 0 is all ones.
        own_images: a slice is scored on the images that have one of its classes (``drop_images_without_class``).
        progress: called once for each domain of each detector.
    """

    classes: Sequence[str]
    images: Mapping[str, Sequence[LabelledImage]]
    weights: Mapping[str, np.ndarray]
    own_images: bool = False
    progress: Callable[[], None] = lambda: None


def score_weighted(results: Mapping[str, Any], found: RunDetections, weighting: Weighting) -> ScoredRun:
    """Score every entry of the results under each weighting of the test images.

    Args:
        results: the content of results.json.
        found: detections of its stages and references.
        weighting: of the test images.

    Raises:
        ValueError: when detections are missing, are for other images, or do not give the values of the results in
            row 0.
    """
    if len(found.stages) != len(results["stages"]):
        raise ValueError(f"expected detections of {len(results['stages'])} stages, got them of {len(found.stages)}")
    stages = []
    for stage, detections in zip(results["stages"], found.stages):
        detector = _Scorer(f"stage {stage['task']}", detections, weighting)
        parts = {part: stage.get(part) or () for part in ("slices", "grid", "class_ap")}
        scored = {part: [detector.entry(item, item["domain"]) for item in items] for part, items in parts.items()}
        stages.append((stage["task"], scored))
    return ScoredRun(stages, _reference(results.get("reference") or {}, found.reference, weighting))


def _reference(
    reference: Mapping[str, Any], detections: Mapping[str, Sequence[Detections]], weighting: Weighting
) -> dict[str, list[ScoredEntry]]:
    scorer = _Scorer("the reference", detections, weighting)
    individual = reference.get("kind") == "individual"

    def key(item: Mapping[str, Any]) -> str:
        label = Slice(item["domain"], tuple(item["classes"])).label
        return f"individual/{label}" if individual else f"joint/{item['domain']}"

    return {
        "slices": [scorer.entry(item, key(item)) for item in reference.get("slices") or ()],
        "grid": [scorer.entry(item, f"joint/{item['domain']}") for item in reference.get("grid") or ()],
    }


class _Scorer:
    """Scores entries from detections by key; each key is matched once, when it is first asked for."""

    def __init__(self, what: str, detections: Mapping[str, Sequence[Detections]], weighting: Weighting) -> None:
        self._what, self._detections, self._weighting = what, detections, weighting
        self._scored: dict[str, _Weighted] = {}

    def entry(self, item: Mapping[str, Any], key: str) -> ScoredEntry:
        """The values of one entry, checked against those that the results hold."""
        weighted = self._weighted(item["domain"], key)
        names = {name: item[name] for name in _NAMES if name in item}
        if "class" in item:
            entry = ScoredEntry(names, _CLASS_KEYS, weighted.class_ap(item["class"]))
        else:
            entry = ScoredEntry(names, _SLICE_KEYS, weighted.slice(item["classes"]))
        for name, value in zip(entry.keys, entry.values[0].tolist()):
            said = np.nan if item[name] is None else item[name]
            if not np.isclose(said, value, rtol=0, atol=_SAME, equal_nan=True):
                raise ValueError(
                    f"{self._what}, {entry.label}: the detections give {name} {value:.6f}, the results hold {said:.6f}"
                )
        return entry

    def _weighted(self, domain: str, key: str) -> _Weighted:
        if key not in self._scored:
            if key not in self._detections or domain not in self._weighting.images:
                raise ValueError(f"{self._what}: there are no detections '{key}'")
            setting = self._weighting
            matches = class_matches(setting.images[domain], self._detections[key], setting.classes)
            self._scored[key] = _Weighted(matches, setting.weights[domain], setting.own_images)
            setting.progress()
        return self._scored[key]


class _Weighted:
    """One detector in one domain."""

    def __init__(self, matches: Mapping[str, ClassMatches], weights: np.ndarray, own_images: bool) -> None:
        self._matches, self._weights, self._own_images = matches, weights, own_images
        self._per_class: dict[str, np.ndarray] = {}

    def class_ap(self, name: str) -> np.ndarray:
        """(W, 2) AP50 and AP50-95 over all images."""
        if name not in self._per_class:
            self._per_class[name] = average_precisions(self._matches[name], self._weights)
        return self._per_class[name]

    def slice(self, classes: Sequence[str]) -> np.ndarray:
        """(W, 2) mAP50 and mAP50-95: the mean over the classes that have a box."""
        if not self._own_images:
            return _mean_over_classes([self.class_ap(name) for name in classes])
        own = sum(self._matches[name].boxes for name in classes) > 0
        weights = self._weights * own
        return _mean_over_classes([average_precisions(self._matches[name], weights) for name in classes])


def _mean_over_classes(values: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(values)
    scored = np.isfinite(stacked).sum(axis=0)
    return np.where(scored > 0, np.nansum(stacked, axis=0) / np.maximum(scored, 1), np.nan)
