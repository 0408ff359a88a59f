"""Labelled images drawn anew in a domain shift; their boxes stay as they are."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from duet.datasets.domains import apply_shift
from duet.datasets.images import LabelledImage
from duet.datasets.pictures import read_bgr

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Shift:
    """A domain shift as a series or a command names it.

    Args:
        name: a key of `duet.datasets.domains.SHIFTS`.
        seed: of its random choices.
        strength: 0 (the picture itself) to 1.5.
    """

    name: str
    seed: int = 0
    strength: float = 1.0


def shifted_images(images: Sequence[LabelledImage], folder: Path) -> tuple[LabelledImage, ...]:
    """The images with the paths that `draw_shifted` gives them; nothing is drawn."""
    counts: Counter[str] = Counter()
    moved = []
    for image in images:
        stem = image.path.stem
        counts[stem] += 1
        name = stem if counts[stem] == 1 else f"{stem}~{counts[stem]}"  # from another folder of the same split
        moved.append(replace(image, path=folder / f"{name}.jpg"))
    return tuple(moved)


def draw_shifted(
    images: Sequence[LabelledImage],
    shift: Shift,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LabelledImage, ...]:
    """Draw every image in a domain shift, as JPEG, on all cores; the result depends on image, name and shift alone.

    Args:
        images: the images; not changed.
        shift: the shift.
        folder: where the drawn images go; it exists.
        progress: called with images drawn and images in all.

    Returns:
        The same labelled images with the paths of the drawn ones.

    Raises:
        InputError: when a file is not a readable image.
    """
    moved = shifted_images(images, folder)
    pairs = list(zip(images, moved))
    # OpenCV and NumPy let go of the interpreter while they work, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(lambda pair: _draw(pair[0].path, pair[1].path, shift), pairs), start=1):
            if progress:
                progress(done, len(images))
    return moved


def _draw(source: Path, target: Path, shift: Shift) -> None:
    seed = int(hashlib.sha256(f"{shift.seed}:{source.stem}".encode()).hexdigest()[:8], 16)
    drawn = apply_shift(read_bgr(source), shift.name, seed=seed, strength=shift.strength)
    data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    target.write_bytes(data.tobytes())
