"""Test scenes with boxes drawn on them: the ground truth, and detections judged against it."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

IOU_THRESHOLD = 0.5

# Mid-tones that can be told apart by most colour-blind eyes; further classes take hues of equal steps.
_CLASS_COLOURS = (
    "#e4572e",
    "#17bebb",
    "#f2c14e",
    "#7a5cff",
    "#6fb83f",
    "#ff7bac",
    "#2f8fe0",
    "#b98b5e",
    "#c23fc2",
    "#3ddc97",
)
_FALSE_RED = "#d7263d"
_MISSED_WHITE = "#ffffff"


@dataclass(frozen=True)
class DrawnBox:
    """A box on a picture.

    Args:
        box_xyxy: left, top, right, bottom in pixels of the picture.
        label: name of the class.
        score: confidence from 0 to 1; None for ground truth.
    """

    box_xyxy: tuple[float, float, float, float]
    label: str
    score: float | None = None

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box_xyxy
        if not (np.isfinite(self.box_xyxy).all() and left <= right and top <= bottom):
            raise ValueError(f"box of '{self.label}': expected left ≤ right and top ≤ bottom, got {self.box_xyxy}")


@dataclass(frozen=True)
class ScenePanel:
    """One test picture and what is on it.

    Args:
        domain: name of the domain.
        image_rgb: ``(H, W, 3)`` uint8.
        ground_truth: the true boxes, of all classes.
        after_first: detections of the model after the first stage.
        final: detections of the model after the last stage.

    Raises:
        ValueError: when the image has another shape or type.
    """

    domain: str
    image_rgb: np.ndarray
    ground_truth: Sequence[DrawnBox] = ()
    after_first: Sequence[DrawnBox] = ()
    final: Sequence[DrawnBox] = ()

    def __post_init__(self) -> None:
        image = self.image_rgb
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"scene of '{self.domain}': expected (H, W, 3) uint8, got {image.shape} {image.dtype}")


@dataclass(frozen=True)
class Verdict:
    """Detections judged against the ground truth of the classes that are known.

    Args:
        correct: detections with a true box of their class at IoU ≥ 0.5, each true box used once.
        false: the other detections.
        missed: true boxes of known classes without a detection.
    """

    correct: tuple[DrawnBox, ...]
    false: tuple[DrawnBox, ...]
    missed: tuple[DrawnBox, ...]

    @property
    def caption(self) -> str:
        """Such as ``4 of 5 found, 1 false``."""
        total = len(self.correct) + len(self.missed)
        found = f"{len(self.correct)} of {total} found" if total else "nothing it was taught"
        return f"{found}, {len(self.false)} false" if self.false else found


def judge(detections: Sequence[DrawnBox], ground_truth: Sequence[DrawnBox], known: Sequence[str]) -> Verdict:
    """Match detections to true boxes of the same class, best score first, each true box once.

    Args:
        detections: what a model found; may be empty.
        ground_truth: all true boxes.
        known: classes the model has been taught; true boxes of other classes are not missed.
    """
    free = [box for box in ground_truth if box.label in known]
    correct: list[DrawnBox] = []
    false: list[DrawnBox] = []
    for detection in sorted(detections, key=lambda box: -(box.score or 0.0)):
        rivals = [box for box in free if box.label == detection.label]
        best = max(rivals, key=lambda box: _iou(box.box_xyxy, detection.box_xyxy), default=None)
        if best is not None and _iou(best.box_xyxy, detection.box_xyxy) >= IOU_THRESHOLD:
            free = [box for box in free if box is not best]
            correct.append(detection)
        else:
            false.append(detection)
    return Verdict(tuple(correct), tuple(false), tuple(free))


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """One ``#rrggbb`` colour per class, by its place in the series."""
    return {name: _colour(position) for position, name in enumerate(classes)}


def draw_truth(image_rgb: np.ndarray, boxes: Sequence[DrawnBox], colours: Mapping[str, str], size: int) -> Image.Image:
    """The picture, its longer side ``size`` pixels (cubic), with the true boxes and class names.

    Boxes with a score are no truth but what a model found: they are dashed, and their score is named.
    """
    canvas = _Canvas(image_rgb, size)
    for box in _large_first(boxes):
        colour = colours.get(box.label, _MISSED_WHITE)
        canvas.solid(box, colour) if box.score is None else canvas.dashed(box, colour, dash=6, gap=5)
    for box in _large_first(boxes):
        canvas.tag(box, f"{box.label} {_score(box)}".strip(), colours.get(box.label, _MISSED_WHITE))
    return canvas.image


def draw_verdict(image_rgb: np.ndarray, verdict: Verdict, colours: Mapping[str, str], size: int) -> Image.Image:
    """The picture with detections: solid in the class colour when correct, dashed red when false.

    True boxes of known classes that were not found are dotted white, without a name.
    """
    canvas = _Canvas(image_rgb, size)
    for box in _large_first(verdict.missed):
        canvas.dashed(box, _MISSED_WHITE, dash=3, gap=5)
    for box in _large_first(verdict.false):
        canvas.dashed(box, _FALSE_RED, dash=9, gap=5)
    for box in _large_first(verdict.correct):
        canvas.solid(box, colours.get(box.label, _MISSED_WHITE))
    for box in _large_first(verdict.false):
        canvas.tag(box, f"{box.label} {_score(box)}", _FALSE_RED)
    for box in _large_first(verdict.correct):
        canvas.tag(box, f"{box.label} {_score(box)}", colours.get(box.label, _MISSED_WHITE))
    return canvas.image


def text_colour(background: str) -> str:
    """Black or white, whichever reads better on ``#rrggbb``."""
    red, green, blue = (int(background[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"


class _Canvas:
    """A picture scaled to a readable size; boxes are given in the pixels of the original."""

    def __init__(self, image_rgb: np.ndarray, size: int) -> None:
        height, width = image_rgb.shape[:2]
        self._scale = size / max(height, width)
        size_wh = (max(1, round(width * self._scale)), max(1, round(height * self._scale)))
        method = Image.Resampling.BICUBIC if self._scale > 1 else Image.Resampling.LANCZOS
        self.image = Image.fromarray(np.ascontiguousarray(image_rgb)).resize(size_wh, method)
        self._draw = ImageDraw.Draw(self.image)
        self._font = _font(max(11, round(size / 27)))
        self._line = max(2, round(size / 130))

    def solid(self, box: DrawnBox, colour: str) -> None:
        """An outline with a thin dark rim outside, so that it stands out from any background."""
        left, top, right, bottom = self._corners(box)
        self._draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="#000000", width=1)
        self._draw.rectangle((left, top, right, bottom), outline=colour, width=self._line)

    def dashed(self, box: DrawnBox, colour: str, dash: int, gap: int) -> None:
        """A dashed outline on a dark one; lengths in pixels of the scaled picture."""
        left, top, right, bottom = self._corners(box)
        for ends in (((left, top), (right, top)), ((right, top), (right, bottom))):
            self._dashes(*ends, colour, dash, gap)
        for ends in (((left, bottom), (right, bottom)), ((left, top), (left, bottom))):
            self._dashes(*ends, colour, dash, gap)

    def tag(self, box: DrawnBox, text: str, colour: str) -> None:
        """The name above the box, or inside its upper edge when there is no room; always within the picture."""
        left, top, _, _ = self._corners(box)
        _, _, width, height = self._draw.textbbox((0, 0), text, font=self._font)
        width, height = width + 8, height + 5
        x = min(max(0, left - 1), max(0, self.image.width - width))
        y = top - height if top - height >= 0 else min(top, self.image.height - height)
        self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        self._draw.text((x + 4, y + 2), text, fill=text_colour(colour), font=self._font)

    def _corners(self, box: DrawnBox) -> tuple[int, int, int, int]:
        left, top, right, bottom = (round(value * self._scale) for value in box.box_xyxy)
        width, height = self.image.width - 1, self.image.height - 1
        left, top = min(max(left, 0), width), min(max(top, 0), height)
        return left, top, min(max(right, left), width), min(max(bottom, top), height)

    def _dashes(self, start: tuple[int, int], end: tuple[int, int], colour: str, dash: int, gap: int) -> None:
        (x0, y0), (x1, y1) = start, end
        self._draw.line((x0, y0, x1, y1), fill="#000000", width=self._line + 1)
        length = max(x1 - x0, y1 - y0)
        for begin in range(0, length, dash + gap):
            stop = min(begin + dash, length)
            along = (begin, 0, stop, 0) if y0 == y1 else (0, begin, 0, stop)
            points = (x0 + along[0], y0 + along[1], x0 + along[2], y0 + along[3])
            self._draw.line(points, fill=colour, width=self._line)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font knows Latin only; Matplotlib always ships DejaVu, with Greek, Cyrillic and symbols.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"), size)


def _colour(position: int) -> str:
    if position < len(_CLASS_COLOURS):
        return _CLASS_COLOURS[position]
    # Steps by the golden ratio keep neighbours far apart however many classes there are.
    red, green, blue = colorsys.hls_to_rgb((position * 0.618034) % 1.0, 0.5 + 0.12 * (position % 3 - 1), 0.7)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _large_first(boxes: Sequence[DrawnBox]) -> list[DrawnBox]:
    return sorted(boxes, key=lambda box: -_area(box.box_xyxy))


def _score(box: DrawnBox) -> str:
    return "" if box.score is None else f"{box.score:.2f}"


def _area(box_xyxy: Sequence[float]) -> float:
    return max(0.0, box_xyxy[2] - box_xyxy[0]) * max(0.0, box_xyxy[3] - box_xyxy[1])


def _iou(first_xyxy: Sequence[float], second_xyxy: Sequence[float]) -> float:
    low = [max(a, b) for a, b in zip(first_xyxy[:2], second_xyxy[:2])]
    high = [min(a, b) for a, b in zip(first_xyxy[2:], second_xyxy[2:])]
    shared = _area((*low, *high))
    union = _area(first_xyxy) + _area(second_xyxy) - shared
    return shared / union if union > 0 else 0.0
