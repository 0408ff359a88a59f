"""One labelled image, the form into which every reader brings its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class LabelledImage:
    """An image file and its boxes.

    Args:
        path: the image file.
        size_hw: height and width in pixels.
        boxes_xyxy: (N, 4) float64, pixels.
        labels: N class names.
        lines: for each box, the label file and line it was read from, ``file, line 3``.
    """

    path: Path
    size_hw: tuple[int, int]
    boxes_xyxy: np.ndarray
    labels: tuple[str, ...]
    lines: tuple[str, ...]
