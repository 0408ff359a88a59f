"""Predictions through Ultralytics' own predictor, each image as if it were alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.engine.predictor import BasePredictor
from ultralytics.engine.results import Results
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.patches import imread

from duet.config import EvaluationSettings
from duet.detectors.base import Detections
from duet.errors import InputError

BATCH = 32
MOST_WAITING = 256  # decoded images held back until their shape fills a batch


def predict_images(
    predictor_class: type[BasePredictor],
    model: DetectionModel,
    names: tuple[str, ...],
    images: Sequence[Path],
    image_size: int,
    settings: EvaluationSettings,
) -> Iterator[tuple[Path, Detections]]:
    """Detections for image files, the same boxes that a deployed checkpoint gives for each image alone.

    Args:
        predictor_class: the family's predictor.
        model: the network; not changed.
        names: its class names in the order of the outputs.
        images: image files; they come back grouped by shape.
        image_size: side of the square input in pixels.
        settings: thresholds.

    Raises:
        InputError: when a file is not a readable image.
    """
    predictor = predictor_class(
        overrides={
            "imgsz": image_size,
            "conf": settings.confidence,
            "iou": settings.iou,
            "max_det": settings.max_detections,
            "device": str(next(model.parameters()).device),
            "verbose": False,
            "save": False,
            "mode": "predict",
        }
    )
    predictor.setup_model(copy.deepcopy(model).eval(), verbose=False)  # the predictor fuses what it is given
    for paths, pictures in _same_shape_batches(images):
        for path, result in zip(paths, predictor(pictures)):
            yield path, _detections(result, names)


def letterboxed(images: Iterable[Path], image_size: int, stretched: bool = False) -> Iterator[Tensor]:
    """Batches of (N, 3, image_size, image_size) inputs, 0 to 1, for passes that need no boxes."""
    letterbox = LetterBox((image_size, image_size), auto=False, scale_fill=stretched)
    held: list[np.ndarray] = []
    for path in images:
        held.append(letterbox(image=imread(str(path)))[..., ::-1].transpose(2, 0, 1))
        if len(held) == BATCH:
            yield torch.from_numpy(np.ascontiguousarray(held)).float() / 255
            held = []
    if held:
        yield torch.from_numpy(np.ascontiguousarray(held)).float() / 255


def _same_shape_batches(images: Sequence[Path]) -> Iterator[tuple[list[Path], list[np.ndarray]]]:
    """Batches of images of one shape, so that each is letterboxed as if it were alone."""
    waiting: dict[tuple[int, ...], tuple[list[Path], list[np.ndarray]]] = {}
    for path in images:
        picture = imread(str(path))
        if picture is None:
            raise InputError(f"{path}: not a readable image")
        paths, pictures = waiting.setdefault(picture.shape, ([], []))
        paths.append(path)
        pictures.append(picture)
        if len(paths) == BATCH:
            yield waiting.pop(picture.shape)
        elif sum(len(group) for group, _ in waiting.values()) >= MOST_WAITING:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape][0])))
    yield from waiting.values()


def _detections(result: Results, names: tuple[str, ...]) -> Detections:
    boxes = result.boxes
    return Detections(
        boxes.xyxy.cpu().numpy().astype(np.float32),
        boxes.conf.cpu().numpy().astype(np.float32),
        tuple(names[int(index)] for index in boxes.cls.tolist()),
    )
