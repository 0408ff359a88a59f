"""What a stage trains on: the chosen images with the labels of some classes only, in the layout the trainer reads.

Images are linked, not copied; labels are rewritten by class name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from duet.datasets.faults import not_of_the_task
from duet.datasets.images import LabelledImage
from duet.datasets.pictures import ends_as_jpeg_should, read_bgr
from duet.detectors.base import DomainStatistics
from duet.errors import InputError


@dataclass(frozen=True)
class TrainingSet:
    """A prepared training set.

    Args:
        data: YAML file for the trainer.
        images: number of images.
        boxes: number of boxes that are labelled.
        dropped_boxes: boxes of other classes whose labels were left out.
        dropped_images: images left out because no label remained.
    """

    data: Path
    images: int
    boxes: int
    dropped_boxes: int
    dropped_images: int


def write_training_set(
    images: Iterable[LabelledImage],
    labelled: Sequence[str],
    classes: Sequence[str],
    folder: Path,
    other_labels: Literal["error", "drop"] = "error",
    unlabelled_images: Literal["keep", "drop"] = "keep",
) -> TrainingSet:
    """Prepare a training set; an old one in the folder is replaced.

    Args:
        images: the candidates.
        labelled: the classes whose labels are kept.
        classes: the detector's classes in the order of its outputs; holds all of ``labelled``.
        folder: where to write.
        other_labels: ``drop`` leaves out labels of other classes (background shift); ``error`` refuses them.
        unlabelled_images: whether images without a remaining label are trained on, as background.

    Raises:
        InputError: when a label is of another class and that is an error, or no label remains at all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    index = {name: position for position, name in enumerate(classes)}
    wanted = frozenset(labelled)
    count = boxes = dropped_boxes = dropped_images = 0
    for image in images:
        kept = [position for position, name in enumerate(image.labels) if name in wanted]
        if len(kept) < len(image.labels) and other_labels == "error":
            stray = next(position for position, name in enumerate(image.labels) if name not in wanted)
            raise InputError(f"{image.lines[stray]}: {not_of_the_task(image.labels[stray], labelled)}")
        dropped_boxes += len(image.labels) - len(kept)
        if not kept and unlabelled_images == "drop":
            dropped_images += 1
            continue
        name = f"{count:06d}"
        _place(image.path, folder / "images" / f"{name}{image.path.suffix.lower()}")
        lines = [_line(image, position, index) for position in kept]
        (folder / "labels" / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
        count, boxes = count + 1, boxes + len(kept)
    if boxes == 0:
        raise InputError(f"training split: no box of the classes {', '.join(labelled)} in any image")
    data = folder / "data.yaml"
    layout = {
        "path": str(folder.resolve()),
        "train": "images",
        "val": "images",
        "names": dict(enumerate(classes)),
    }
    data.write_text(yaml.safe_dump(layout, allow_unicode=True), encoding="utf-8")
    return TrainingSet(data, count, boxes, dropped_boxes, dropped_images)


def colour_statistics(images: Sequence[LabelledImage], limit: int = 500) -> DomainStatistics:
    """Mean and standard deviation of red, green and blue over a domain's training pixels, 0 to 1.

    Args:
        images: the training images.
        limit: at about how many of them, evenly spread, are read.
    """
    step = max(1, len(images) // limit)
    total = np.zeros(3)
    squares = np.zeros(3)
    pixels = 0
    for image in images[::step]:
        values = read_bgr(image.path)[..., ::-1].reshape(-1, 3).astype(np.float64) / 255
        total += values.sum(0)
        squares += np.square(values).sum(0)
        pixels += len(values)
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - np.square(mean), 1e-6))
    return DomainStatistics(tuple(mean.tolist()), tuple(std.tolist()))


def _place(source: Path, target: Path) -> None:
    """Link an image; Ultralytics rewrites a JPEG file that ends in other bytes, so such a one is mended in a copy."""
    with source.open("rb") as stream:
        jpeg = stream.read(2) == b"\xff\xd8"
    if jpeg and not ends_as_jpeg_should(source):
        target.write_bytes(source.read_bytes() + b"\xff\xd9")
    else:
        target.symlink_to(source.resolve())


def _line(image: LabelledImage, position: int, index: dict[str, int]) -> str:
    height, width = image.size_hw
    x1, y1, x2, y2 = image.boxes_xyxy[position]
    values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return f"{index[image.labels[position]]} " + " ".join(f"{min(max(v, 0.0), 1.0):.8f}" for v in values) + "\n"
