"""Training pictures for detectors without a trainer of their own: augmented by albumentations, the same for a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from duet.config import TrainSettings
from duet.documents import read_yaml
from duet.errors import InputError

GREY = 114  # of the border around a letterboxed picture, as Ultralytics has it
SMALLEST_BOX = 2.0  # pixels; what augmentation leaves of a box below that is dropped


@dataclass(frozen=True)
class Sample:
    """One training picture.

    Args:
        image: (3, S, S) float32, red green blue, 0 to 1.
        boxes_xyxy: (N, 4) float32, pixels of the input.
        labels: (N,) int64, positions among the detector's classes.
    """

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor


class TrainingPictures(Dataset):
    """The pictures of a training set in YOLO layout.

    A picture's augmentation depends on seed, epoch and position only, so that workers and order do not matter.

    Args:
        data: the set's YAML file.
        settings: training settings; ``image_size`` and the augmentation's are read.
        seed: of the augmentation.
        augment: whether pictures are changed at all.
    """

    def __init__(self, data: Path, settings: TrainSettings, seed: int, augment: bool = True) -> None:
        layout = read_yaml(data)
        folder = Path(layout["path"])
        self.images = sorted((folder / layout["train"]).iterdir())
        self.labels = [folder / "labels" / f"{path.stem}.txt" for path in self.images]
        self.seed, self.epoch = seed, 0
        self.change = _pipeline(settings, augment)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        self.change.set_random_seed(hash((self.seed, self.epoch, index)) % 2**31)
        lines = self.labels[index].read_text().splitlines()
        rows = np.array([line.split() for line in lines], dtype=np.float64).reshape(-1, 5)
        found = self.change(image=read_rgb(self.images[index]), bboxes=rows[:, 1:], labels=rows[:, 0])
        boxes = np.asarray(found["bboxes"], dtype=np.float32).reshape(-1, 4)
        size = found["image"].shape[0]
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1) * size
        labels = torch.tensor([int(value) for value in found["labels"]], dtype=torch.int64)
        return Sample(to_tensor(found["image"]), torch.from_numpy(corners), labels)


def letterbox(image_size: int) -> A.Compose:
    """Scale to the input's size, and a grey border around the centred picture."""
    return A.Compose(_letterbox(image_size))


def read_rgb(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8.

    Raises:
        InputError: when it is not readable.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(f"{path}: not a readable image")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32, 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255


def _letterbox(image_size: int) -> list[A.BasicTransform]:
    return [
        A.LongestMaxSize(image_size),
        A.PadIfNeeded(image_size, image_size, border_mode=cv2.BORDER_CONSTANT, fill=GREY),
    ]


def _pipeline(settings: TrainSettings, augment: bool) -> A.Compose:
    steps = _letterbox(settings.image_size)
    if augment:
        steps += [
            A.Affine(
                scale=(1 - settings.scale, 1 + settings.scale),
                translate_percent=(-settings.translate, settings.translate),
                keep_ratio=True,
                fill=GREY,
                p=1.0,
            ),
            A.HueSaturationValue(180 * settings.hsv_h, 255 * settings.hsv_s, 255 * settings.hsv_v, p=1.0),
            A.HorizontalFlip(p=settings.fliplr),
        ]
    boxes = A.BboxParams(
        "yolo", label_fields=["labels"], clip=True, min_width=SMALLEST_BOX, min_height=SMALLEST_BOX, min_visibility=0.1
    )
    return A.Compose(steps, bbox_params=boxes)
