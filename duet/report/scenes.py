"""The test scenes of the report: pictures with ground truth and with detections of two stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from duet.datasets.images import LabelledImage
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
            with Image.open(image.path) as picture:
                pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
            truth = [DrawnBox(tuple(box), label, None) for box, label in zip(image.boxes_xyxy.tolist(), image.labels)]
            panels.append(ScenePanel(domain, pixels, truth, _drawn(before), _drawn(after)))
    return panels


def _drawn(found: Mapping[str, Any]) -> list[DrawnBox]:
    return [
        DrawnBox(tuple(box), label, score)
        for box, label, score in zip(found["boxes_xyxy"], found["labels"], found["scores"])
    ]
