"""The test scenes of the report: pictures with ground truth and with detections of two stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duet.datasets.images import LabelledImage
from duet.datasets.pictures import read_bgr
from duet.report.html import DrawnBox, ScenePanel

Examples = Mapping[str, Sequence[Mapping[str, Any]]]


def scene_panels(
    tests: Mapping[str, Sequence[LabelledImage]], first: Examples, final: Examples, count: int
) -> list[ScenePanel]:
    """Panels of the first ``count`` test images of each domain.

    Args:
        tests: test images by domain.
        first: confident detections after the first stage, by domain and image.
        final: the same at the end.
        count: panels per domain.
    """
    panels = []
    for domain, images in tests.items():
        for image, before, after in zip(images[:count], first[domain], final[domain]):
            pixels = read_bgr(image.path)[..., ::-1]
            panels.append(ScenePanel(domain, pixels, true_boxes(image), _drawn(before), _drawn(after)))
    return panels


def true_boxes(image: LabelledImage) -> list[DrawnBox]:
    """The boxes that evaluation counts, without difficult and crowd ones."""
    scored = image.chosen(~image.ignored)
    return [DrawnBox(tuple(box), label, None) for box, label in zip(scored.boxes_xyxy.tolist(), scored.labels)]


def _drawn(found: Mapping[str, Any]) -> list[DrawnBox]:
    return [
        DrawnBox(tuple(box), label, score)
        for box, label, score in zip(found["boxes_xyxy"], found["labels"], found["scores"])
    ]
