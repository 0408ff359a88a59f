"""One labelled image, the form into which every reader brings its data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class LabelledImage:
    """An image file and its boxes.

    Args:
        path: the image file.
        size_hw: height and width in pixels, as the picture is shown.
        boxes_xyxy: (N, 4) float64, pixels from the upper left corner; right and lower edges lie behind the last pixel.
        labels: N class names.
        lines: for each box, the label file and line it was read from, ``file, line 3``.
        difficult: (N,) bool, VOC's flag for objects that are hard to recognise; None means none.
        crowd: (N,) bool, COCO's flag for a region with many objects of the class; None means none.

    Raises:
        ValueError: when the parts have different lengths or a box has no area.
    """

    path: Path
    size_hw: tuple[int, int]
    boxes_xyxy: np.ndarray
    labels: tuple[str, ...]
    lines: tuple[str, ...]
    difficult: np.ndarray = None
    crowd: np.ndarray = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.difficult is None or self.crowd is None:
            for name in ("difficult", "crowd"):
                if getattr(self, name) is None:
                    object.__setattr__(self, name, np.zeros(count, dtype=bool))
        boxes = self.boxes_xyxy
        if boxes.shape != (count, 4) or not len(self.lines) == len(self.difficult) == len(self.crowd) == count:
            raise ValueError(f"{self.path}: {count} labels, boxes of shape {boxes.shape}, or as many lines and flags")
        if not (boxes[:, :2] < boxes[:, 2:]).all():  # false for NaN too
            raise ValueError(f"{self.path}: expected boxes with left < right and top < bottom")

    @property
    def ignored(self) -> np.ndarray:
        """(N,) bool: boxes that evaluation ignores, as COCO ignores crowds."""
        return self.difficult | self.crowd

    def chosen(self, mask: np.ndarray) -> LabelledImage:
        """The same image with some of its boxes only.

        Args:
            mask: (N,) bool, true for those that stay.
        """
        positions = np.flatnonzero(mask).tolist()
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[mask],
            labels=tuple(self.labels[position] for position in positions),
            lines=tuple(self.lines[position] for position in positions),
            difficult=self.difficult[mask],
            crowd=self.crowd[mask],
        )
