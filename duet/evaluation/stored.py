"""Detections on test images, kept beside a stage: intervals, comparisons and pictures need no second pass."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from duet.detectors.base import Detections
from duet.errors import InputError
from duet.state import write_atomic

_PARTS = ("images", "boxes", "scores", "labels")


def store_detections(by_domain: Mapping[str, Sequence[Detections]], classes: Sequence[str], path: Path) -> None:
    """Write detections of one detector, atomically.

    Args:
        by_domain: one entry per test image, in the order of the domain's test images.
        classes: the class names that labels may have.
        path: a safetensors file; per domain it holds the number of boxes of each image (N,) int32, and of all images
            in a row boxes_xyxy (M, 4) float32, scores (M,) float32 and labels (M,) int32 into ``classes``.

    Raises:
        ValueError: when a label is not in ``classes``.
    """
    places = {name: place for place, name in enumerate(classes)}
    tensors: dict[str, np.ndarray] = {}
    for number, found in enumerate(by_domain.values()):
        labels = [label for item in found for label in item.labels]
        unknown = [label for label in labels if label not in places]
        if unknown:
            raise ValueError(f"detections: the class '{unknown[0]}' is not one of {list(classes)}")
        tensors[f"{number}/images"] = np.asarray([len(item.labels) for item in found], dtype=np.int32)
        tensors[f"{number}/boxes"] = _rows([item.boxes_xyxy.reshape(-1, 4) for item in found], (0, 4))
        tensors[f"{number}/scores"] = _rows([item.scores for item in found], (0,))
        tensors[f"{number}/labels"] = np.asarray([places[label] for label in labels], dtype=np.int32)
    about = {"domains": json.dumps(list(by_domain)), "classes": json.dumps(list(classes))}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, about))


def restore_detections(path: Path) -> dict[str, list[Detections]]:
    """Detections by domain, one entry per test image, as they were stored.

    Raises:
        InputError: when the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as stream:
            about = stream.metadata() or {}
            domains, classes = json.loads(about["domains"]), json.loads(about["classes"])
            values = [[stream.get_tensor(f"{n}/{part}") for part in _PARTS] for n in range(len(domains))]
        return {name: _per_image(*parts, classes) for name, parts in zip(domains, values)}
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing") from error
    except (SafetensorError, OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path}: damaged, it does not hold stored detections") from error


def _rows(parts: Sequence[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(empty)]).astype(np.float32)


def _per_image(
    images: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> list[Detections]:
    ends = np.cumsum(images)
    total = int(ends[-1]) if len(ends) else 0
    if not len(boxes) == len(scores) == len(labels) == total:
        raise ValueError("the parts have different lengths")
    spans = zip(ends - images, ends)
    return [Detections(boxes[a:b], scores[a:b], tuple(classes[place] for place in labels[a:b])) for a, b in spans]
