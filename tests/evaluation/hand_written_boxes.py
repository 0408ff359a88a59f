"""Test images and detections written by hand: (label, box) and (label, score, box)."""

from pathlib import Path

import numpy as np

from duet.datasets.images import LabelledImage
from duet.detectors.base import Detections


def truth(name, *items):
    boxes = np.array([box for _, box in items], dtype=float).reshape(-1, 4)
    return LabelledImage(Path(name), (100, 100), boxes, tuple(label for label, _ in items), ("x",) * len(items))


def found(*items):
    return Detections(
        np.array([box for _, _, box in items], dtype=np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in items], dtype=np.float32),
        tuple(label for label, _, _ in items),
    )
