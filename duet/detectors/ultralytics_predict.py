"""Predictions through Ultralytics' own predictor."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.engine.predictor import BasePredictor
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import nms
from ultralytics.utils.patches import imread

from duet.config import EvaluationSettings
from duet.detectors.base import BATCH, Detections, Key
from duet.errors import InputError

MOST_WAITING = 256  # decoded images held back until their shape fills a batch
MOST_WAITING_BYTES = 256_000_000
NO_LIMIT = 3600.0  # seconds per image: on a busy machine Ultralytics' own limit loses boxes


class MultiLabelPredictor(DetectionPredictor):
    """Ultralytics' predictor with the suppression of its validator: every class of a box above the confidence."""

    def postprocess(self, preds: Any, img: Tensor, orig_imgs: list[np.ndarray], **kwargs: Any) -> list[Results]:
        """Results of a batch; a box comes once for each of its classes."""
        kept = nms.non_max_suppression(
            preds,
            self.args.conf,
            self.args.iou,
            multi_label=True,
            max_det=self.args.max_det,
            end2end=getattr(self.model, "end2end", False),
            max_time_img=NO_LIMIT,
        )
        return self.construct_results(kept, img, orig_imgs, **kwargs)


def predict_images(
    predictor_class: type[BasePredictor],
    model: DetectionModel,
    names: tuple[str, ...],
    images: Sequence[Path],
    image_size: int,
    settings: EvaluationSettings,
) -> Iterator[tuple[Path, Detections]]:
    """Detections for image files, letterboxed to a square, for scoring.

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
    predictor = set_up_predictor(predictor_class, model, image_size, settings)
    yield from predict_pictures(predictor, names, _read(images), BATCH)


def set_up_predictor(
    predictor_class: type[BasePredictor],
    model: DetectionModel | Path,
    image_size: int,
    settings: EvaluationSettings,
    **overrides: Any,
) -> BasePredictor:
    """Ultralytics' predictor, ready for pictures.

    Args:
        predictor_class: the family's predictor.
        model: the network, which is not changed, or an exported one.
        image_size: longer side of the input in pixels.
        settings: thresholds.
        overrides: further settings of Ultralytics, such as ``rect``, which pads a picture no more than the strides ask.
    """
    device = "cpu" if isinstance(model, Path) else str(next(model.parameters()).device)
    predictor = predictor_class(
        overrides={
            "imgsz": image_size,
            "conf": settings.confidence,
            "iou": settings.iou,
            "max_det": settings.max_detections,
            "device": device,
            "verbose": False,
            "save": False,
            "mode": "predict",
            **overrides,
        }
    )
    # The predictor fuses what it is given.
    given = str(model) if isinstance(model, Path) else copy.deepcopy(model).eval()
    predictor.setup_model(given, verbose=False)
    return predictor


def predict_pictures(
    predictor: BasePredictor, names: tuple[str, ...], pictures: Iterable[tuple[Key, np.ndarray]], batch: int
) -> Iterator[tuple[Key, Detections]]:
    """Detections for (key, picture); only pictures of one shape run together, each padded as if it were alone."""
    for keys, group in _same_shape_batches(pictures, batch):
        for key, result in zip(keys, predictor(group)):
            yield key, _detections(result, names)


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


def _read(images: Iterable[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    for path in images:
        picture = imread(str(path))
        if picture is None:
            raise InputError(f"{path}: not a readable image")
        yield path, picture


def _same_shape_batches(
    pictures: Iterable[tuple[Key, np.ndarray]], batch: int
) -> Iterator[tuple[list[Key], list[np.ndarray]]]:
    """Batches of pictures of one shape."""
    waiting: dict[tuple[int, ...], tuple[list[Key], list[np.ndarray]]] = {}
    held = size = 0
    for key, picture in pictures:
        keys, group = waiting.setdefault(picture.shape, ([], []))
        keys.append(key)
        group.append(picture)
        held, size = held + 1, size + picture.nbytes
        full = held >= MOST_WAITING or size >= MOST_WAITING_BYTES
        if len(group) == batch or full:
            shape = picture.shape if len(group) == batch else max(waiting, key=lambda one: len(waiting[one][0]))
            keys, group = waiting.pop(shape)
            held, size = held - len(group), size - len(group) * group[0].nbytes
            yield keys, group
    yield from waiting.values()


def _detections(result: Results, names: tuple[str, ...]) -> Detections:
    boxes = result.boxes
    return Detections(
        boxes.xyxy.cpu().numpy().astype(np.float32),
        boxes.conf.cpu().numpy().astype(np.float32),
        tuple(names[int(index)] for index in boxes.cls.tolist()),
    )
