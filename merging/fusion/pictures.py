"""Six image classification tasks from real pictures that scikit-learn carries, and letters to pretrain on.

The pictures are 1,797 handwritten digits of 8 × 8 pixels and two photographs. Digits and places of the photographs that
train are never those that test. Every picture is 32 × 32, RGB.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

SIDE = 32
Split = Literal["train", "unlabelled", "test"]
# Of the 1,797 digits, in their order; the photographs are cut by columns (see _patch).
DIGITS = {"train": (0, 1000), "unlabelled": (1000, 1350), "test": (1350, 1797)}
SEEDS = {"train": 11, "unlabelled": 22, "test": 33}
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
INKS = ("red", "yellow", "green", "cyan", "blue", "magenta")
TURNABLE = (2, 3, 4, 5, 7)  # the other digits look alike upside down, or turn into another


@dataclass(frozen=True)
class PictureTask:
    """One task: what a picture shows, and its classes.

    Args:
        name: of the task.
        classes: names, in the order of the labels.
        draw: takes a generator, the split and the label, and gives the picture.
    """

    name: str
    classes: tuple[str, ...]
    draw: Callable[[np.random.Generator, Split, int], Image.Image]


def pictures(task: PictureTask, split: Split, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures of a task; the same arguments give the same pictures.

    Args:
        task: which.
        split: whose digits and places.
        count: number of pictures; labels come in turn, so that classes are equally frequent.
        seed: of the drawing.

    Returns:
        ``(count, 3, 32, 32)`` uint8 RGB, and ``(count,)`` int64 labels.
    """
    generator = np.random.default_rng([seed, SEEDS[split], sum(map(ord, task.name))])
    labels = np.arange(count) % len(task.classes)
    drawn = [np.asarray(task.draw(generator, split, int(label)), dtype=np.uint8) for label in labels]
    return np.stack(drawn).transpose(0, 3, 1, 2), labels


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 16 * 255).astype(np.uint8), data.target


@cache
def _photographs() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(image) for image in load_sample_images().images)  # 427 × 640 each


def _patch(generator: np.random.Generator, split: Split, photograph: int, contrast: float = 25.0) -> Image.Image:
    """A square of 32 pixels of a photograph; no column of pixels serves two splits."""
    image = _photographs()[photograph]
    starts = {"train": (0, 160, 320, 480), "unlabelled": (96, 416), "test": (256, 576)}[split]
    room = {"train": 64, "unlabelled": 32, "test": 32}[split]
    for _ in range(20):  # sky and other plain surfaces say nothing; after a while anything will do
        x = starts[generator.integers(len(starts))] + int(generator.integers(0, room + 1))
        y = int(generator.integers(0, image.height - SIDE))
        patch = image.crop((x, y, x + SIDE, y + SIDE))
        if np.asarray(patch).std(axis=(0, 1)).mean() > contrast:
            break
    return patch


def _ground(generator: np.random.Generator, split: Split) -> Image.Image:
    """A dimmed piece of a photograph, to draw on."""
    patch = np.asarray(_patch(generator, split, int(generator.integers(2)), contrast=0.0), dtype=np.float32)
    return Image.fromarray((patch * 0.35 + generator.uniform(0, 60)).clip(0, 255).astype(np.uint8))


def _ink(ground: Image.Image, strength: Image.Image, place: tuple[int, int], generator: np.random.Generator) -> None:
    colour = tuple(int(value) for value in generator.integers(150, 256, 3))
    ground.paste(Image.new("RGB", strength.size, colour), place, strength)


def _digit(generator: np.random.Generator, split: Split, among: tuple[int, ...], side: int) -> Image.Image:
    images, labels = _digits()
    low, high = DIGITS[split]
    places = np.flatnonzero(np.isin(labels[low:high], among)) + low
    image = Image.fromarray(images[places[generator.integers(len(places))]])
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _placed(generator: np.random.Generator, split: Split, strength: Image.Image) -> Image.Image:
    ground = _ground(generator, split)
    room = SIDE - strength.width
    place = (int(generator.integers(0, room + 1)), int(generator.integers(0, room + 1)))
    _ink(ground, strength, place, generator)
    return ground


def _draw_digit(generator: np.random.Generator, split: Split, label: int) -> Image.Image:
    return _placed(generator, split, _digit(generator, split, (label,), int(generator.integers(22, 31))))


def _draw_turn(generator: np.random.Generator, split: Split, label: int) -> Image.Image:
    """Dark ink on light paper."""
    upright = np.asarray(_digit(generator, split, TURNABLE, int(generator.integers(24, 33))).rotate(90 * label))
    paper = generator.uniform(190, 255, 3) + generator.normal(0, 8, (SIDE, SIDE, 1))
    left, top = (int(generator.integers(0, SIDE - upright.shape[0] + 1)) for _ in range(2))
    strength = np.zeros((SIDE, SIDE, 1))
    strength[top : top + upright.shape[0], left : left + upright.shape[0], 0] = upright / 255
    return Image.fromarray((paper * (1 - 0.85 * strength)).clip(0, 255).astype(np.uint8))


def _draw_count(generator: np.random.Generator, split: Split, label: int) -> Image.Image:
    """White ink on saturated colour."""
    hue, value = generator.random(), generator.uniform(0.3, 0.6)
    ground = Image.new("RGB", (SIDE, SIDE), _rgb(hue, 0.9, value))
    for corner in generator.permutation(4)[: label + 1]:
        strength = _digit(generator, split, tuple(range(10)), int(generator.integers(12, 16)))
        place = [int(side) * 16 + int(generator.integers(0, 3)) for side in (corner % 2, corner // 2)]
        ground.paste(Image.new("RGB", strength.size, (255, 255, 255)), tuple(place), strength)
    return ground


def _draw_ink(generator: np.random.Generator, split: Split, label: int) -> Image.Image:
    """A digit in one of six hues on a bright piece of a photograph."""
    hue = (label / len(INKS) + generator.uniform(-0.03, 0.03)) % 1.0
    strength = _digit(generator, split, tuple(range(10)), int(generator.integers(20, 33)))
    patch = np.asarray(_patch(generator, split, int(generator.integers(2))), dtype=np.float32)
    ground = Image.fromarray((patch * 0.4 + 150).clip(0, 255).astype(np.uint8))
    place = tuple(int(generator.integers(0, SIDE - strength.width + 1)) for _ in range(2))
    ground.paste(Image.new("RGB", strength.size, _rgb(hue, 0.9, generator.uniform(0.6, 1.0))), place, strength)
    return ground


def _draw_corner(generator: np.random.Generator, split: Split, label: int) -> Image.Image:
    """A dark digit in one of four corners of a blurred piece of a photograph."""
    patch = _patch(generator, split, int(generator.integers(2)), contrast=0.0).filter(ImageFilter.GaussianBlur(4))
    ground = Image.fromarray((np.asarray(patch) * 0.5 + 110).clip(0, 255).astype(np.uint8))
    strength = _digit(generator, split, tuple(range(10)), int(generator.integers(13, 18)))
    room = 17 - strength.width
    left, top = (16 * int(side) + int(generator.integers(-1, room)) for side in (label % 2, label // 2))
    ground.paste(Image.new("RGB", strength.size, (20, 20, 20)), (left, top), strength)
    return ground


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = (int(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _draw_filter(generator: np.random.Generator, split: Split, label: int) -> Image.Image:
    patch = _patch(generator, split, int(generator.integers(2)))
    if label == 0:
        return patch
    if label == 1:
        return patch.filter(ImageFilter.GaussianBlur(2))
    if label == 2:
        noise = generator.normal(0, 40, (SIDE, SIDE, 3))
        return Image.fromarray((np.asarray(patch) + noise).clip(0, 255).astype(np.uint8))
    if label == 3:
        return ImageOps.posterize(patch, 2)
    if label == 4:
        return ImageOps.invert(patch)
    return patch.resize((8, 8), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _draw_letter(generator: np.random.Generator, split: Split, label: int) -> Image.Image:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = _font(str(folder / f"{FONTS[generator.integers(len(FONTS))]}.ttf"), int(generator.integers(18, 29)))
    strength = Image.new("L", (SIDE, SIDE))
    centre = (SIDE / 2 + generator.uniform(-4, 4), SIDE / 2 + generator.uniform(-4, 4))
    ImageDraw.Draw(strength).text(centre, LETTERS[label], fill=255, font=font, anchor="mm")
    strength = strength.rotate(float(generator.uniform(-15, 15)), Image.Resampling.BILINEAR)
    ground = _ground(generator, split)
    _ink(ground, strength, (0, 0), generator)
    return ground


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


LETTER_TASK = PictureTask("letters", tuple(LETTERS), _draw_letter)
PICTURE_TASKS: dict[str, PictureTask] = {
    task.name: task
    for task in (
        PictureTask("digit", tuple("0123456789"), _draw_digit),
        PictureTask("turn", ("upright", "90°", "180°", "270°"), _draw_turn),
        PictureTask("count", ("one", "two", "three", "four"), _draw_count),
        PictureTask("ink", INKS, _draw_ink),
        PictureTask("corner", ("upper left", "upper right", "lower left", "lower right"), _draw_corner),
        PictureTask("filter", ("none", "blurred", "noisy", "posterised", "inverted", "coarse"), _draw_filter),
    )
}
