"""Sample pages: pictures of a split with their boxes, as one PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from duet.datasets.domains import SHIFTS, apply_shift
from duet.datasets.images import LabelledImage
from duet.datasets.pictures import read_bgr
from duet.datasets.shifted import Shift
from duet.report.drawing import DrawnBox, class_colours, draw_truth
from duet.state import write_atomic

_CELL = 320  # pixels; the longer side of a picture on the page
_GAP = 8
_PAPER = "#ffffff"


def sample_page(
    images: Sequence[LabelledImage],
    classes: Sequence[str],
    path: Path,
    count: int = 12,
    columns: int = 4,
    seed: int = 0,
    scores: Callable[[str], float | None] = lambda line: None,
    note: str = "",
) -> int:
    """Draw some images of a split, chosen by a seed; those with boxes first.

    Args:
        images: the images of the split; not empty.
        classes: class names, which decide the colours.
        path: the PNG file; replaced.
        count: how many at most.
        columns: pictures side by side.
        seed: of the choice.
        scores: from a box's line to the score of what is no truth but was found; such a box is dashed.
        note: a line above the pictures.

    Returns:
        How many were drawn.

    Raises:
        ValueError: when there is no image.
    """
    if not images:
        raise ValueError("a sample page of no images")
    order = np.random.default_rng(seed).permutation(len(images))
    ranked = sorted(order.tolist(), key=lambda position: not images[position].labels)
    chosen = [images[position] for position in ranked[:count]]
    colours = class_colours(classes)
    page = contact_sheet([_drawn(image, colours, scores) for image in chosen], columns)
    page = _headed(page, note) if note else page
    write_atomic(path, lambda temporary: page.save(temporary, "PNG", optimize=True))
    return len(chosen)


def shift_sheet(image_bgr: np.ndarray, path: Path, width: int, settings: Shift) -> None:
    """Draw a picture in every domain shift, each with its name, in few enough colours for a small file.

    Args:
        image_bgr: ``(H, W, 3)`` uint8.
        path: the PNG file; replaced.
        width: of each drawing in pixels.
        settings: seed and strength; its name is not used.
    """
    height = round(image_bgr.shape[0] * width / image_bgr.shape[1])
    small = cv2.resize(image_bgr, (width, height), interpolation=cv2.INTER_AREA)
    drawings = []
    for name in SHIFTS:
        drawn = apply_shift(small, name, seed=settings.seed, strength=settings.strength)
        drawings.append(_named(Image.fromarray(np.ascontiguousarray(drawn[..., ::-1])), name))
    page = contact_sheet(drawings, columns=4).quantize(256, dither=Image.Dither.NONE)
    write_atomic(path, lambda temporary: page.save(temporary, "PNG", optimize=True))


def contact_sheet(pictures: Sequence[Image.Image], columns: int, gap: int = _GAP) -> Image.Image:
    """Pictures in rows, each in the middle of a cell of equal size."""
    columns = min(columns, len(pictures))
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), _PAPER)
    for number, picture in enumerate(pictures):
        left = gap + number % columns * (width + gap) + (width - picture.width) // 2
        top = gap + number // columns * (height + gap) + (height - picture.height) // 2
        sheet.paste(picture, (left, top))
    return sheet


def _headed(page: Image.Image, note: str) -> Image.Image:
    sheet = Image.new("RGB", (page.width, page.height + 24), _PAPER)
    sheet.paste(page, (0, 24))
    ImageDraw.Draw(sheet).text((_GAP, 6), note, fill="#333333", font=ImageFont.load_default(size=14))
    return sheet


def _named(picture: Image.Image, name: str) -> Image.Image:
    font = ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (picture.width, picture.height + 20), _PAPER)
    sheet.paste(picture, (0, 0))
    ImageDraw.Draw(sheet).text((2, picture.height + 3), name, fill="#333333", font=font)
    return sheet


def _drawn(image: LabelledImage, colours: dict[str, str], scores: Callable[[str], float | None]) -> Image.Image:
    parts = zip(image.boxes_xyxy.tolist(), image.labels, image.ignored.tolist(), image.lines)
    boxes = [
        DrawnBox(tuple(box), f"{label} (ignored)" if ignored else label, scores(line))
        for box, label, ignored, line in parts
    ]
    known = {**colours, **{f"{name} (ignored)": colour for name, colour in colours.items()}}
    return draw_truth(read_bgr(image.path)[..., ::-1], boxes, known, _CELL)
