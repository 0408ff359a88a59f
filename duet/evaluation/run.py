"""Score a detector on a series: one inference pass per domain, then every slice from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from duet.config import EvaluationSettings
from duet.datasets.images import LabelledImage
from duet.detectors.base import Detections, Detector
from duet.evaluation.average_precision import ClassPrecision, class_precisions, mean_precision
from duet.series import Slice

MATCH_SCORE = 0.25
MATCH_IOU = 0.5


@dataclass(frozen=True)
class DomainScores:
    """What a detector reaches in one domain.

    Args:
        domain: name of the domain.
        images: number of test images.
        classes: average precision by class name, over all classes of the series.
        background: by class name, what became of its boxes: (found, missed, wrong class).
        detections: by image path.
        on_own_images: scores a slice on the images that have one of its classes: their number, and average precision
            by class name; None scores every slice on all images.
    """

    domain: str
    images: int
    classes: Mapping[str, ClassPrecision]
    background: Mapping[str, tuple[int, int, int]]
    detections: Mapping[Path, Detections]
    on_own_images: Callable[[Sequence[str]], tuple[int, Mapping[str, ClassPrecision]]] | None = None

    def score(self, classes: Sequence[str]) -> dict[str, float | int | None]:
        """mAP50, mAP50-95, images and boxes of the slice with these classes."""
        images, values = self.on_own_images(classes) if self.on_own_images else (self.images, self.classes)
        map50, map50_95 = mean_precision(values, classes)
        boxes = sum(values[name].boxes for name in classes)
        return {"map50": map50, "map50_95": map50_95, "images": images, "boxes": boxes}


def score_domain(
    detector: Detector,
    domain: str,
    images: Sequence[LabelledImage],
    classes: Sequence[str],
    image_size: int,
    settings: EvaluationSettings,
    progress: Callable[[int, int], None] | None = None,
) -> DomainScores:
    """Run a detector once over a domain's test images and score every class.

    Args:
        detector: the detector; classes it does not know score 0.
        domain: name of the domain.
        images: its test images.
        classes: all classes of the series.
        image_size: side of the square input in pixels.
        settings: thresholds and evaluator.
        progress: called with images done and images in all.
    """
    detections: dict[Path, Detections] = {}
    for path, found in detector.predict([image.path for image in images], image_size, settings):
        detections[path] = found
        if progress:
            progress(len(detections), len(images))
    values = class_precisions(images, detections, classes, settings.evaluator)
    background = _fates(images, detections, classes)
    on_own_images = None
    if settings.drop_images_without_class:
        on_own_images = partial(_score_on_own_images, images, detections, settings.evaluator)
    return DomainScores(domain, len(images), values, background, detections, on_own_images)


def score_slice(scores: Mapping[str, DomainScores], item: Slice) -> dict[str, object]:
    """The entry of a slice in results.json."""
    return {"domain": item.domain, "classes": list(item.classes), **scores[item.domain].score(item.classes)}


def _score_on_own_images(
    images: Sequence[LabelledImage],
    detections: Mapping[Path, Detections],
    evaluator: Literal["faster-coco-eval", "pycocotools"],
    classes: Sequence[str],
) -> tuple[int, Mapping[str, ClassPrecision]]:
    """Images with a box of one of the classes that is not ignored, and the classes' average precision over them."""
    wanted = frozenset(classes)
    own = [image for image in images if not wanted.isdisjoint(image.chosen(~image.ignored).labels)]
    if not own:
        return 0, {name: ClassPrecision(None, None, 0) for name in classes}
    return len(own), class_precisions(own, detections, classes, evaluator)


def _fates(
    images: Sequence[LabelledImage], detections: Mapping[Path, Detections], classes: Sequence[str]
) -> dict[str, tuple[int, int, int]]:
    """Found, missed or covered by another class: counts of ground-truth boxes at MATCH_SCORE and MATCH_IOU."""
    counts = {name: [0, 0, 0] for name in classes}
    for image in images:
        item = detections[image.path].one_per_box()
        sure = item.scores >= MATCH_SCORE
        boxes = item.boxes_xyxy[sure]
        labels = [label for label, keep in zip(item.labels, sure.tolist()) if keep]
        for box, name, ignored in zip(image.boxes_xyxy, image.labels, image.ignored.tolist()):
            if name in counts and not ignored:
                covering = {labels[index] for index in np.flatnonzero(box_iou(box, boxes) >= MATCH_IOU)}
                counts[name][0 if name in covering else 2 if covering else 1] += 1
    return {name: tuple(values) for name, values in counts.items()}


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one xyxy box with (N, 4) others, (N,)."""
    if len(boxes) == 0:
        return np.zeros(0)
    lower = np.maximum(boxes[:, :2], box[:2])
    upper = np.minimum(boxes[:, 2:], box[2:])
    overlap = np.prod(np.clip(upper - lower, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return overlap / np.maximum(areas - overlap, 1e-9)
