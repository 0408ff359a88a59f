"""Generated scenes: objects of ink pasted on coloured textures, none much over another.

Everything is drawn from the generator that is passed in, so a scene depends on that generator's seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from duet.datasets.domains import smooth_field

EDGE = 0.5  # ink at which a stroke ends

_MAX_OVERLAP = 0.1  # shared area / area of the smaller box, which also keeps the IoU below
_SOFT = 2  # pixels that the soft edge of the ink may reach beyond its box; no box is nearer to the border
_MIN_LUMA_CONTRAST = 0.38
_LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)

# (generator, height in pixels) → the ink of one object as `draw_ink` gives it.
Draw = Callable[[np.random.Generator, float], np.ndarray]


@dataclass(frozen=True)
class Scene:
    """One picture and what stands in it.

    Args:
        image_bgr: ``(S, S, 3)``, uint8.
        ink: ``(n, S, S)``, float32, 0 to 1: each object's ink.
        boxes_xyxy: ``(n, 4)``, int64, in pixels; the right and lower edges are exclusive.
        classes: ``(n,)``, int64: index of each object's class.
    """

    image_bgr: np.ndarray
    ink: np.ndarray = field(repr=False)
    boxes_xyxy: np.ndarray
    classes: np.ndarray


def seeded(*key: str) -> np.random.Generator:
    """A generator that depends on the key alone."""
    digest = hashlib.sha256("/".join(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def paste(
    rng: np.random.Generator, classes: np.ndarray, draws: Sequence[Draw], size: int, size_range: tuple[float, float]
) -> Scene:
    """Objects of random size and position in colours that stand out, on a random texture.

    Args:
        rng: of every choice.
        classes: ``(n,)``: the objects' classes.
        draws: how each object is drawn.
        size: side of the picture in pixels.
        size_range: least and greatest height of an object / side of the picture; smaller where they do not fit.
    """
    ink, boxes = _place(rng, draws, size, size_range)
    image = _texture(rng, size)
    for layer, box in zip(ink, boxes):
        colour = _ink_colour(rng, image[box[1] : box[3], box[0] : box[2]])
        image += layer[..., None] * (colour - image)
    return Scene((image * 255 + 0.5).astype(np.uint8), ink, boxes, classes)


def draw_ink(
    rng: np.random.Generator,
    master: np.ndarray,
    height: float,
    max_turn: float = 15.0,
    stretch_range: tuple[float, float] = (0.9, 1.2),
) -> np.ndarray:
    """The ink of one object, turned, stretched and scaled, with `_SOFT` pixels around its box.

    Args:
        rng: of turn and stretch.
        master: ``(H, W)``, float32: the object enlarged; a stroke is where it is above `EDGE`.
        height: that of the upright object's box, in pixels.
        max_turn: largest turn to either side in degrees.
        stretch_range: least and greatest factor of the width.
    """
    left, top, right, bottom = _ink_box(master > EDGE)
    scale = height / (bottom - top)
    turn = np.deg2rad(rng.uniform(-max_turn, max_turn))
    stretch = np.array([rng.uniform(*stretch_range), 1.0])
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * scale * stretch
    side = int(np.ceil(2.2 * max(height, (right - left) * scale))) + 4
    centre = np.array([(left + right - 1) / 2, (top + bottom - 1) / 2])
    shift = (side - 1) / 2 - linear @ centre
    turned = cv2.warpAffine(master, np.hstack([linear, shift[:, None]]), (side, side), flags=cv2.INTER_LINEAR)
    ink = np.clip((turned - EDGE) / 0.4 + 0.5, 0, 1)
    left, top, right, bottom = _ink_box(ink >= 0.5)
    return ink[top - _SOFT : bottom + _SOFT, left - _SOFT : right + _SOFT]


def _place(
    rng: np.random.Generator, draws: Sequence[Draw], size: int, size_range: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Objects of random size, slant and position, without much overlap.

    Returns:
        The ink ``(n, S, S)`` of each object alone and the boxes around it ``(n, 4)``.
    """
    heights = rng.uniform(*size_range, len(draws)) * size
    while True:
        patches = [draw(rng, height) for draw, height in zip(draws, heights)]
        boxes = _free_boxes(rng, [patch.shape for patch in patches], size)
        if boxes is not None:
            break
        heights = heights * 0.9
    ink = np.zeros((len(draws), size, size), np.float32)
    for layer, patch, (left, top, right, bottom) in zip(ink, patches, boxes):
        layer[top - _SOFT : bottom + _SOFT, left - _SOFT : right + _SOFT] = patch
    return ink, boxes


def _ink_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _free_boxes(rng: np.random.Generator, shapes: list[tuple[int, int]], size: int) -> np.ndarray | None:
    """A place inside the picture for every patch, or None when forty tries found none for one of them."""
    boxes: list[np.ndarray] = []
    for patch_height, patch_width in shapes:
        extent = np.array([patch_width, patch_height]) - 2 * _SOFT
        for _ in range(40):
            corner = rng.integers(_SOFT, size - _SOFT - extent + 1)
            box = np.concatenate([corner, corner + extent])
            if all(_overlap(box, other) <= _MAX_OVERLAP for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return np.stack(boxes)


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Shared area of two boxes / area of the smaller one."""
    shared = np.prod(np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0))
    return float(shared / min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2])))


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two related colours flowing into each other, with patches of light and shade; ``(S, S, 3)``, 0 to 1."""
    lightness, hue = rng.uniform(15, 85), rng.uniform(0, 2 * np.pi)
    mix = 0.6 * smooth_field(rng, (size, size), 4) + 0.4 * smooth_field(rng, (size, size), 10)
    shade = smooth_field(rng, (size, size), 6) - 0.5
    angle = hue + (mix - 0.5) * rng.uniform(1.0, 4.0)
    chroma = rng.uniform(15, 45)
    lab = np.dstack([lightness + 26 * shade, chroma * np.cos(angle), chroma * np.sin(angle)])
    return np.clip(cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_Lab2BGR), 0, 1)


def _ink_colour(rng: np.random.Generator, region: np.ndarray) -> np.ndarray:
    """The first of some random colours that stands out from the region, or the one that stands out most."""
    hsv = rng.uniform((0, 0.1, 0.05), (360, 1, 1), (1, 32, 3)).astype(np.float32)
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0]
    contrast = np.abs((colours - region.mean(axis=(0, 1))) @ _LUMA_BGR)
    fitting = np.flatnonzero(contrast >= _MIN_LUMA_CONTRAST)
    return colours[fitting[0] if len(fitting) else contrast.argmax()]
