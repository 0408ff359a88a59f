"""Average precision by COCO's evaluator, per class, from one pass over a domain.

COCO's mAP is the mean over the classes that have at least one box, so one evaluation per domain serves every slice:
mAP of D[C] is the mean of the per-class values over C. All test images of D take part, also those without an object
of C, as COCO does. Difficult and crowd boxes are ignored as COCO ignores crowds: they are not counted, and a detection
that lies on one is neither right nor wrong. (VOC's own evaluation measures the overlap with a difficult box by IoU,
COCO by the share of the detection that lies on it.)
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from duet.datasets.images import LabelledImage
from duet.detectors.base import Detections

MAX_DETECTIONS = 100  # per image and class, COCO's largest setting
AREAS = [0.0, 1e10]  # of COCO's "all", in square pixels


@dataclass(frozen=True)
class ClassPrecision:
    """Average precision of one class in one domain.

    Args:
        ap50: at IoU 0.5, or None when the class has no box in the domain.
        ap50_95: mean over IoU 0.5, 0.55 … 0.95, or None.
        boxes: number of ground-truth boxes, ignored ones left out.
    """

    ap50: float | None
    ap50_95: float | None
    boxes: int


def class_precisions(
    images: Sequence[LabelledImage],
    detections: Mapping[Path, Detections],
    classes: Sequence[str],
    evaluator: Literal["faster-coco-eval", "pycocotools"] = "faster-coco-eval",
) -> dict[str, ClassPrecision]:
    """Average precision of each class over the images of a domain.

    Args:
        images: the test images with their boxes.
        detections: one entry per image.
        classes: the classes to score; boxes and detections of others are left out.
        evaluator: which implementation of COCO's evaluator.

    Raises:
        ValueError: when there is no image or an image has no entry in ``detections``.
    """
    if not images:
        raise ValueError("average precision over no images")
    missing = [image.path for image in images if image.path not in detections]
    if missing:
        raise ValueError(f"{missing[0]}: was not run through the detector")
    category = {name: number for number, name in enumerate(classes, start=1)}
    truth = coco_truth(images, category)
    found = _results(images, detections, category)
    precision = _evaluate(truth, found, len(classes), evaluator) if found else None
    counts = _counts(truth, len(classes))
    return {name: _class_precision(precision, number, counts[number]) for number, name in enumerate(classes)}


def mean_precision(values: Mapping[str, ClassPrecision], classes: Sequence[str]) -> tuple[float | None, float | None]:
    """mAP50 and mAP50-95 of a slice: the mean over those of its classes that have a box; None when none has."""
    scored = [values[name] for name in classes if values[name].boxes > 0]
    if not scored:
        return None, None
    return float(np.mean([item.ap50 for item in scored])), float(np.mean([item.ap50_95 for item in scored]))


def coco_truth(images: Sequence[LabelledImage], category: Mapping[str, int]) -> dict[str, Any]:
    """The boxes in COCO's form; image ids count from 1 in the order of ``images``, ignored boxes are crowds.

    Args:
        images: the images with their boxes.
        category: category id by class name; boxes of other classes are left out.
    """
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for (x1, y1, x2, y2), label, ignored in zip(image.boxes_xyxy.tolist(), image.labels, image.ignored.tolist()):
            if label in category:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(ignored),
                    }
                )
    return {
        "info": {},
        "images": [
            {"id": number, "height": image.size_hw[0], "width": image.size_hw[1], "file_name": image.path.name}
            for number, image in enumerate(images, start=1)
        ],
        "categories": [{"id": number, "name": name} for name, number in category.items()],
        "annotations": annotations,
    }


def _results(
    images: Sequence[LabelledImage], detections: Mapping[Path, Detections], category: Mapping[str, int]
) -> list[dict[str, Any]]:
    results = []
    for number, image in enumerate(images, start=1):
        item = detections[image.path]
        for (x1, y1, x2, y2), score, label in zip(item.boxes_xyxy.tolist(), item.scores.tolist(), item.labels):
            if label in category:
                results.append(
                    {
                        "image_id": number,
                        "category_id": category[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "score": score,
                    }
                )
    return results


def _evaluate(truth: dict[str, Any], results: list[dict[str, Any]], classes: int, evaluator: str) -> np.ndarray:
    """COCO's precision array at all areas and the largest detection limit, (T, R, K)."""
    with contextlib.redirect_stdout(io.StringIO()):  # both evaluators print their progress
        if evaluator == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval as Evaluator

            index = COCO()
            index.dataset = truth
            index.createIndex()
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as Evaluator

            index = COCO(truth)
        run = Evaluator(index, index.loadRes(results), "bbox")
        run.params.catIds = list(range(1, classes + 1))
        run.params.areaRng, run.params.areaRngLbl = [AREAS], ["all"]
        run.params.maxDets = [MAX_DETECTIONS]
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"])[:, :, :, 0, -1]


def _counts(truth: dict[str, Any], classes: int) -> np.ndarray:
    categories = [item["category_id"] - 1 for item in truth["annotations"] if not item["iscrowd"]]
    return np.bincount(categories, minlength=classes) if categories else np.zeros(classes, dtype=int)


def _class_precision(precision: np.ndarray | None, number: int, boxes: int) -> ClassPrecision:
    if boxes == 0:
        return ClassPrecision(None, None, 0)
    if precision is None:
        return ClassPrecision(0.0, 0.0, int(boxes))
    values = precision[:, :, number]  # (T, R), -1 only for classes without boxes
    return ClassPrecision(float(values[0].mean()), float(values.mean()), int(boxes))
