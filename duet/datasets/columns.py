"""The content of a whole split as a few arrays, the form in which an index is kept."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np

from duet.datasets.annotation import Row
from duet.datasets.images import LabelledImage
from duet.datasets.readers import LABEL_SUFFIX
from duet.datasets.source import Source, stem_of

DIGITS = 6  # decimals of a pixel; so far a conversion to another format and back returns the same box


class Columns:
    """The content of a split as arrays.

    Args:
        arrays: per image ``sizes`` (height and width) and ``counts`` of boxes; per box ``boxes``, ``classes`` (places
            in ``labels``), ``numbers`` (line or id), ``difficult`` and ``crowd``.
        labels: class names.
    """

    def __init__(self, arrays: dict[str, np.ndarray], labels: list[str]) -> None:
        self.arrays, self.labels = arrays, labels

    @classmethod
    def of(cls, sizes_hw: list[tuple[int, int]], rows: list[list[Row]]) -> Columns:
        """The arrays of images with these sizes and boxes."""
        boxes, names, numbers, difficult, crowd = zip(*itertools.chain(*rows)) if any(rows) else ((),) * 5
        labels = sorted(set(names))
        position = {label: number for number, label in enumerate(labels)}
        corners = np.fromiter(itertools.chain.from_iterable(boxes), dtype=np.float64, count=4 * len(boxes))
        arrays = {
            "sizes": np.array(sizes_hw, dtype=np.int32).reshape(-1, 2),
            "counts": np.array([len(item) for item in rows], dtype=np.int32),
            "boxes": corners.round(DIGITS).reshape(-1, 4) + 0.0,  # no negative zero
            "classes": np.array([position[name] for name in names], dtype=np.int32),
            "numbers": np.array(numbers, dtype=np.int64),
            "difficult": np.array(difficult, dtype=bool),
            "crowd": np.array(crowd, dtype=bool),
        }
        return cls(arrays, labels)

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """The content of several parts, one after the other."""
        labels = sorted({label for part in parts for label in part.labels})
        position = {label: number for number, label in enumerate(labels)}
        arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
        places = [np.array([position[label] for label in part.labels], dtype=np.int32) for part in parts]
        found = [place[part.arrays["classes"]] for place, part in zip(places, parts) if len(part.arrays["classes"])]
        arrays["classes"] = np.concatenate(found) if found else arrays["classes"]
        return cls(arrays, labels)

    def labelled_images(self, source: Source, images: list[str]) -> tuple[LabelledImage, ...]:
        """The images with their boxes, which stay views of the arrays."""
        values, suffix = self.arrays, LABEL_SUFFIX.get(source.format)
        ends = np.cumsum(values["counts"]).tolist()
        sizes, numbers, classes = values["sizes"].tolist(), values["numbers"].tolist(), values["classes"].tolist()
        folder, unit = f"{source.labels}{os.sep}", "line" if suffix else "annotation"
        boxes, difficult, crowd = values["boxes"], values["difficult"], values["crowd"]
        found, start = [], 0
        for image, size, end in zip(images, sizes, ends):
            file = f"{folder}{stem_of(image)}{suffix}" if suffix else str(source.labels)
            part = slice(start, end)
            found.append(
                LabelledImage(
                    path=source.images / image,
                    size_hw=(size[0], size[1]),
                    boxes_xyxy=boxes[part],
                    labels=tuple([self.labels[number] for number in classes[part]]),
                    lines=tuple([f"{file}, {unit} {number}" for number in numbers[part]]),
                    difficult=difficult[part],
                    crowd=crowd[part],
                )
            )
            start = end
        return tuple(found)
