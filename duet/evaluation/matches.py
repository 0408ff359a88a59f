"""Which detections of a class are right, per image: what COCO's evaluator finds before it sums over the images.

Average precision under any weighting of the images follows from this (``bootstrap``), so that an image is matched
once, however often it is drawn. The matching is pycocotools', which keeps it per image; faster-coco-eval does not
show it, and both give the same average precision. A detection that overlaps no box of its class by the lowest
threshold matches nothing, so the evaluator is not asked about it: that saves most of its time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from duet.datasets.images import LabelledImage
from duet.detectors.base import Detections
from duet.evaluation.average_precision import AREAS, MAX_DETECTIONS, coco_truth

IOU_THRESHOLDS = 10  # 0.5, 0.55 … 0.95
LOWEST_IOU = 0.5


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class in one domain, D of them over N images, by falling score.

    Equal scores stand in the order of the images, as in COCO's evaluator; of each image the 100 best take part.

    Args:
        scores: (D,) float64.
        images: (D,) int64, the place of each detection's image.
        correct: (10, D) bool, matched to a box that counts, for each IoU threshold.
        ignored: (10, D) bool, neither right nor wrong: matched to a difficult or crowd box.
        boxes: (N,) int64, ground-truth boxes in each image, ignored ones left out.
    """

    scores: np.ndarray
    images: np.ndarray
    correct: np.ndarray
    ignored: np.ndarray
    boxes: np.ndarray


def class_matches(
    images: Sequence[LabelledImage], detections: Sequence[Detections], classes: Sequence[str]
) -> dict[str, ClassMatches]:
    """Match the detections of each class to its boxes, image by image, as COCO's evaluator does.

    Args:
        images: the test images of a domain.
        detections: one entry per image, in their order.
        classes: the classes; boxes and detections of others are left out.

    Returns:
        By class name; a class without a detection has D = 0.

    Raises:
        ValueError: when there are not as many entries as images.
    """
    if len(images) != len(detections):
        raise ValueError(f"expected detections on {len(images)} images, got them on {len(detections)}")
    category = {name: number for number, name in enumerate(classes, start=1)}
    truth, found = coco_truth(images, category), _found(detections, category)
    correct, ignored = _matched(truth, found)
    boxes = np.zeros((len(category) + 1, len(images)), dtype=np.int64)
    counted = [item for item in truth["annotations"] if not item["iscrowd"]]
    np.add.at(boxes, ([item["category_id"] for item in counted], [item["image_id"] - 1 for item in counted]), 1)
    return {name: _of_class(found, number, correct, ignored, boxes[number]) for name, number in category.items()}


@dataclass(frozen=True)
class _Found:
    """All detections of a domain that take part, by category, image and falling score."""

    categories: np.ndarray
    images: np.ndarray
    scores: np.ndarray
    boxes_xywh: np.ndarray

    def span(self, category: int, image: int | None = None) -> slice:
        """The rows of a category, or of one of its images."""
        first, last = np.searchsorted(self.categories, [category, category + 1]).tolist()
        if image is None:
            return slice(first, last)
        inner = first + np.searchsorted(self.images[first:last], [image, image + 1])
        return slice(*inner.tolist())


def _found(detections: Sequence[Detections], category: Mapping[str, int]) -> _Found:
    categories = np.asarray([category.get(name, 0) for item in detections for name in item.labels], dtype=np.int64)
    images = np.repeat(np.arange(len(detections)), [len(item.labels) for item in detections])
    scores = np.concatenate([*(item.scores for item in detections), np.zeros(0)]).astype(np.float64)
    boxes = np.concatenate([*(item.boxes_xyxy for item in detections), np.zeros((0, 4))]).astype(np.float64)
    order = np.lexsort((-scores, images, categories))
    order = order[categories[order] > 0]
    pairs = categories[order] * len(detections) + images[order]
    rank = np.arange(len(order)) - np.searchsorted(pairs, pairs)
    order = order[rank < MAX_DETECTIONS]
    boxes[:, 2:] -= boxes[:, :2]
    return _Found(categories[order], images[order], scores[order], boxes[order])


def _matched(truth: dict[str, Any], found: _Found) -> tuple[np.ndarray, np.ndarray]:
    """(10, D) right, and (10, D) ignored, of all detections of the domain."""
    correct, ignored = (np.zeros((IOU_THRESHOLDS, len(found.scores)), dtype=bool) for _ in range(2))
    rows = np.flatnonzero(_near_a_box(truth, found))
    for item in _evaluated(truth, found, rows):
        places = rows[np.asarray(item["dtIds"]) - 1]
        matched = item["dtMatches"] > 0
        correct[:, places] = matched & ~item["dtIgnore"]
        ignored[:, places] = matched & item["dtIgnore"]
    area = found.boxes_xywh[:, 2:].prod(axis=1)
    outside = (area < AREAS[0]) | (area > AREAS[1])  # a box with its edges swapped: COCO leaves it out
    return correct, ignored | (outside & ~correct)


def _near_a_box(truth: dict[str, Any], found: _Found) -> np.ndarray:
    """(D,) whether a detection overlaps a box of its class enough for the lowest threshold; others match nothing."""
    near = np.zeros(len(found.scores), dtype=bool)
    pairs: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for item in truth["annotations"]:
        pairs.setdefault((item["category_id"], item["image_id"] - 1), []).append(item)
    for pair, items in pairs.items():
        span = found.span(*pair)
        if span.stop > span.start:
            boxes, crowd = np.asarray([item["bbox"] for item in items]), [item["iscrowd"] for item in items]
            near[span] = mask.iou(found.boxes_xywh[span], boxes, crowd).max(axis=1) >= LOWEST_IOU
    return near


def _evaluated(truth: dict[str, Any], found: _Found, rows: np.ndarray) -> list[dict[str, Any]]:
    """Pycocotools' record of each image and category with one of these detections; their ids count from 1."""
    results = [
        {"category_id": category, "image_id": image + 1, "score": score, "bbox": box}
        for category, image, score, box in zip(
            *(part[rows].tolist() for part in (found.categories, found.images, found.scores, found.boxes_xywh))
        )
    ]
    if not results:
        return []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        index = COCO()
        index.dataset = truth
        index.createIndex()
        run = COCOeval(index, index.loadRes(results), "bbox")
        run.params.areaRng, run.params.areaRngLbl = [AREAS], ["all"]
        run.params.maxDets = [MAX_DETECTIONS]
        run.evaluate()
    return [item for item in run.evalImgs if item is not None and item["dtIds"]]


def _of_class(found: _Found, number: int, correct: np.ndarray, ignored: np.ndarray, boxes: np.ndarray) -> ClassMatches:
    span = found.span(number)
    order = span.start + np.argsort(-found.scores[span], kind="stable")
    return ClassMatches(found.scores[order], found.images[order], correct[:, order], ignored[:, order], boxes)
