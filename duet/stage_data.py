"""What a stage trains on beyond its own labelled images: pseudo-labels of old classes, kept images of earlier tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from duet.config import EvaluationSettings, ExemplarSettings, PseudoLabelSettings, RunConfig
from duet.datasets.images import LabelledImage
from duet.detectors.base import Detections, Detector
from duet.monitor import Monitor
from duet.report.sample_pages import sample_page
from duet.state import write_json

Item = TypeVar("Item")

LOOKED_AT = 256  # pictures of a stage that tell of its domain
PSEUDO_SAMPLES = 12  # pictures on the page that shows pseudo-labels
PSEUDO = "pseudo-label"  # what the line of one begins with; its score follows


def own_labels(
    images: Sequence[LabelledImage], classes: Sequence[str], unlabelled_images: Literal["keep", "drop"] = "keep"
) -> list[LabelledImage]:
    """The images with the labels of some classes only.

    Args:
        images: with labels of any class.
        classes: whose labels stay.
        unlabelled_images: ``drop`` leaves out images without such a label, so that what is added to the images
            afterwards does not make a stage's images more than its task has.
    """
    wanted = frozenset(classes)
    own = [image.chosen(np.array([name in wanted for name in image.labels], dtype=bool)) for image in images]
    return own if unlabelled_images == "keep" else [image for image in own if image.labels]


def label_by_teacher(
    images: Sequence[LabelledImage],
    classes: Sequence[str],
    teacher: Detector,
    config: RunConfig,
    folder: Path,
    monitor: Monitor,
) -> list[LabelledImage]:
    """What the method's pseudo-labels make of a stage's images, with ``pseudo-labels.json`` and ``.png`` to look at.

    Args:
        images: the new task's images, with the labels of the new classes only (`own_labels`).
        classes: old and new ones.
        teacher: the model of the previous task.
        config: of the run, whose method has pseudo-labels.
        folder: where the two files go.
        monitor: told of the progress.
    """
    monitor.begin("pseudo-labels of old classes", len(images))
    labelled = pseudo_labelled(images, teacher, config.method.pseudo_labels, config.evaluation, config.train.image_size)
    write_json(folder / "pseudo-labels.json", count_pseudo_labels(labelled))
    note = "solid: labels of the new classes · dashed: pseudo-labels of old classes, with their score"
    sample_page(labelled, classes, folder / "pseudo-labels.png", PSEUDO_SAMPLES, scores=pseudo_score, note=note)
    return labelled


def pseudo_labelled(
    images: Sequence[LabelledImage],
    teacher: Detector,
    settings: PseudoLabelSettings,
    evaluation: EvaluationSettings,
    image_size: int,
) -> list[LabelledImage]:
    """The images with the teacher's confident detections of old classes beside their labels.

    Args:
        images: the new task's images, with the labels of the new classes only (`own_labels`).
        teacher: the model of the previous task.
        settings: thresholds.
        evaluation: of the prediction.
        image_size: side of the teacher's input.

    Returns:
        One entry per image, in their order; a pseudo-label's line says ``pseudo-label 0.87`` with its score.
    """
    evaluation = evaluation.model_copy(update={"multi_label": False})  # an object is of one class
    found = dict(teacher.predict([image.path for image in images], image_size, evaluation))
    return [_with_detections(image, found[image.path], settings) for image in images]


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly over the sequence and in its order."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def seen_objects(images: Sequence[LabelledImage], teacher: Detector, config: RunConfig) -> float:
    """Objects of old classes that the previous model sees in a stage's pictures, per picture.

    A detection counts as a pseudo-label would: by its default confidence, and off the labelled objects.

    Args:
        images: the new task's images, with the labels of the new classes only (`own_labels`); at most
            ``LOOKED_AT`` of them are looked at.
        teacher: the model of the previous task.
        config: of the run.
    """
    chosen = spread(images, LOOKED_AT)
    labelled = pseudo_labelled(chosen, teacher, PseudoLabelSettings(), config.evaluation, config.train.image_size)
    found = sum(len(after.labels) - len(before.labels) for before, after in zip(chosen, labelled))
    return found / len(chosen) if chosen else 0.0


def exemplars(
    images: Mapping[str, Sequence[LabelledImage]],
    tasks: Sequence[tuple[str, tuple[str, ...]]],
    settings: ExemplarSettings,
    seed: int,
) -> list[LabelledImage]:
    """Images of earlier tasks to train on again, each with the labels of its own task only.

    Args:
        images: training images by domain.
        tasks: domain and classes of every earlier task.
        settings: how many images are kept per class.
        seed: of the choice; the same images for every later task.
    """
    kept: list[LabelledImage] = []
    for number, (domain, classes) in enumerate(tasks):
        own = own_labels(images[domain], classes)
        generator = np.random.default_rng([seed, number])
        chosen: set[int] = set()
        for name in classes:
            holders = [position for position, image in enumerate(own) if name in image.labels]
            chosen.update(generator.permutation(holders)[: settings.images_per_class].tolist())
        kept += [own[position] for position in sorted(chosen)]
    return kept


def count_pseudo_labels(images: Sequence[LabelledImage]) -> dict[str, int]:
    """How many pseudo-labels of each class there are."""
    names = [
        name for image in images for name, line in zip(image.labels, image.lines) if pseudo_score(line) is not None
    ]
    return dict(sorted(Counter(names).items()))


def pseudo_score(line: str) -> float | None:
    """The score of a pseudo-label by its line; None for a label that was read from a file."""
    name, _, score = line.rpartition(" ")
    return float(score) if name == PSEUDO else None


def _covered(box_xyxy: np.ndarray, others_xyxy: np.ndarray) -> float:
    """The largest share of the smaller box that one box has in common with another; 1 where one holds the other.

    Unlike the IoU it is large for a box around a whole picture, and for a part of a labelled object.
    """
    if not len(others_xyxy):
        return 0.0
    sides = np.minimum(box_xyxy[2:], others_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    own, theirs = np.prod(box_xyxy[2:] - box_xyxy[:2]), np.prod(others_xyxy[:, 2:] - others_xyxy[:, :2], axis=1)
    return float((np.prod(sides.clip(min=0), axis=1) / np.minimum(own, theirs).clip(min=1e-9)).max())


def _with_detections(image: LabelledImage, found: Detections, settings: PseudoLabelSettings) -> LabelledImage:
    keep = [
        position
        for position, box in enumerate(found.boxes_xyxy)
        if found.scores[position] >= settings.confidence
        and _covered(box, image.boxes_xyxy) <= settings.overlap
        and (box[2:] > box[:2]).all()
    ]
    if not keep:
        return image
    boxes = np.concatenate([image.boxes_xyxy, found.boxes_xyxy[keep].astype(np.float64)])
    none = np.zeros(len(keep), dtype=bool)
    return replace(
        image,
        boxes_xyxy=boxes,
        labels=(*image.labels, *(found.labels[position] for position in keep)),
        lines=(*image.lines, *(f"{PSEUDO} {found.scores[position]:.2f}" for position in keep)),
        difficult=np.concatenate([image.difficult, none]),
        crowd=np.concatenate([image.crowd, none]),
    )
