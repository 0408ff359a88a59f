"""The boxes of one image as its labels state them, checked against the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from duet.datasets.faults import Fault, Level, Report
from duet.errors import nearest

SLACK = 1.0  # pixels by which a label may reach over the edge: half of all tools count from 1, half from 0

Box = tuple[float, float, float, float]


class Row(NamedTuple):
    """One box as its label states it.

    Args:
        box: left, top, right, bottom in pixels.
        label: class name.
        number: line in the label file, or id of the annotation.
        difficult: VOC's flag.
        crowd: COCO's flag.
    """

    box: Box
    label: str
    number: int
    difficult: bool = False
    crowd: bool = False


def checked_box(box: Box, size_hw: tuple[int, int], where: str, report: Report) -> Box | None:
    """The box inside its picture; None, with a fault reported, when it cannot be one.

    Args:
        box: left, top, right, bottom in pixels.
        size_hw: of the picture.
        where: file and line.
        report: takes the fault.
    """
    left, top, right, bottom = box
    height, width = size_hw
    if not (left < right and top < bottom):  # false for NaN too
        text = ", ".join(f"{value:g}" for value in box)
        report(Fault(Level.ERROR, where, f"expected a box with left < right and top < bottom, found {text}"))
        return None
    if left < -SLACK or top < -SLACK or right > width + SLACK or bottom > height + SLACK:
        text = ", ".join(f"{value:g}" for value in box)
        report(Fault(Level.ERROR, where, f"the box reaches outside the image of {width} × {height}, found {text}"))
        return None
    if right - left <= 1 or bottom - top <= 1:
        size = f"{right - left:g} × {bottom - top:g}"
        report(Fault(Level.WARNING, where, f"a box of {size} pixels; it can hardly be learned"))
    if left < 0 or top < 0 or right > width or bottom > height:
        box = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if box[0] >= box[2] or box[1] >= box[3]:
            report(Fault(Level.ERROR, where, f"the box lies outside the image of {width} × {height}"))
            return None
    return box


def known_name(
    name: str, names: Sequence[str], rename: Mapping[str, str | None], where: str, report: Report
) -> str | None:
    """The series' name of a class; None when it is left out, or unknown, which is reported."""
    if name in rename:
        return rename[name]
    if name in names:
        return name
    twin = next((known for known in names if known.casefold() == name.casefold()), None)
    hint = f"; it differs from '{twin}' in case only" if twin else nearest(name, names)
    report(Fault(Level.ERROR, where, f"class '{name}' is not among the domain's classes{hint}"))
    return None
