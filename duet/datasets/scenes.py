"""The embedded scenes: handwritten digits on coloured textures, in several domains.

The digits are scikit-learn's 1,797 real ones; training and test scenes draw from separate ranges of them. Every
scene depends on (seed, domain, split, index) alone, so neither the order of writing nor the number of scenes
changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from duet.datasets.domains import SHIFTS, apply_shift
from duet.datasets.pasting import Scene, draw_ink, paste, seeded
from duet.datasets.scene_folder import Render, Split, hashed_name
from duet.errors import nearest

CLASS_NAMES = tuple(str(digit) for digit in range(10))
DIGIT_COUNT = 1797
# Part of the folder's name: raise it whenever a change here or in `pasting` changes a pixel or a label.
GENERATOR_VERSION = 1

_SIZE_RANGE = (0.15, 0.35)  # height of a digit / side of the picture: 24 to 56 of 160 pixels


@dataclass(frozen=True)
class SceneSettings:
    """What is written.

    Args:
        seed: not negative; another seed gives other scenes throughout.
        image_size: side of the square pictures in pixels, at least 64.
        train_scenes: training scenes per domain.
        test_scenes: test scenes per domain.
        train_digits: first and one-past-last index of the digits that training scenes may show.
        test_digits: the same for test scenes; must not overlap ``train_digits``.
        domains: names of `duet.datasets.domains.SHIFTS`.

    Raises:
        ValueError: when a value is out of range, a domain unknown or named twice, or the digits overlap.
    """

    seed: int = 0
    image_size: int = 160
    train_scenes: int = 300
    test_scenes: int = 150
    train_digits: tuple[int, int] = (0, 1200)
    test_digits: tuple[int, int] = (1200, DIGIT_COUNT)
    domains: tuple[str, ...] = ("clear", "night", "fog", "comic")

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("image_size", 64), ("train_scenes", 1), ("test_scenes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"scenes: expected {name} of at least {least}, not {getattr(self, name)}")
        for name in ("train_digits", "test_digits"):
            start, stop = getattr(self, name)
            if not 0 <= start < stop <= DIGIT_COUNT:
                raise ValueError(f"scenes: expected {name} within 0 to {DIGIT_COUNT}, not {start} to {stop}")
        if max(self.train_digits[0], self.test_digits[0]) < min(self.train_digits[1], self.test_digits[1]):
            ranges = f"train_digits {self.train_digits} and test_digits {self.test_digits}"
            raise ValueError(f"scenes: {ranges} overlap; test scenes must show other digits")
        if not self.domains or len(set(self.domains)) != len(self.domains):
            raise ValueError(f"scenes: expected distinct domains, at least one, not {list(self.domains)}")
        for domain in self.domains:
            if domain not in SHIFTS:
                raise ValueError(f"scenes: domain '{domain}' is unknown{nearest(domain, SHIFTS)}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The ten digits."""
        return CLASS_NAMES

    @property
    def generator_version(self) -> int:
        """Rises with every change of a pixel or a label."""
        return GENERATOR_VERSION

    @property
    def folder_name(self) -> str:
        """``scenes-`` and twelve hexadecimal digits of the settings and the generator's version."""
        return hashed_name("scenes", self)

    def renderer(self, split: Split) -> Render:
        """How the scenes of a split are drawn; see `load_digits` for what it may raise."""
        digits = load_digits(self.train_digits if split == "train" else self.test_digits)
        return lambda domain, index: render_scene(self, digits, domain, split, index)


@dataclass(frozen=True)
class Digits:
    """The handwritten digits that one split may show.

    Args:
        images: ``(N, 8, 8)``, float32, 0 (paper) to 1 (ink); all of scikit-learn's digits.
        by_class: for each of the ten classes, the indices into ``images`` that may be drawn.
    """

    images: np.ndarray
    by_class: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class DigitScene(Scene):
    """A scene of digits; ``classes`` are 0 to 9.

    Args:
        digits: ``(n,)``, int64: index of each digit in scikit-learn's set.
    """

    digits: np.ndarray


def load_digits(index_range: tuple[int, int]) -> Digits:
    """scikit-learn's digits, of which those with an index in the range may be drawn.

    Args:
        index_range: first and one-past-last index.

    Raises:
        ImportError: when scikit-learn is not installed.
        ValueError: when one of the ten classes is not among them.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            'the embedded scenes are made of scikit-learn\'s digits; pip install "duet-detection[demo]" brings it'
        ) from error
    source = datasets.load_digits()
    start, stop = index_range
    by_class = tuple(start + np.flatnonzero(source.target[start:stop] == digit) for digit in range(10))
    missing = [name for name, indices in zip(CLASS_NAMES, by_class) if len(indices) == 0]
    if missing:
        raise ValueError(f"scenes: among the digits {start} to {stop} there is no '{missing[0]}'")
    return Digits(source.images.astype(np.float32) / 16, by_class)


def render_scene(settings: SceneSettings, digits: Digits, domain: str, split: Split, index: int) -> DigitScene:
    """One scene, the same whenever it is drawn.

    Args:
        settings: the seed and the size of the picture.
        digits: those of the split.
        domain: name of the shift that is applied to the finished picture.
        split: ``train`` or ``test``; another split has other scenes.
        index: number of the scene in its split, from 0.
    """
    rng = _generator(settings.seed, domain, split, f"scene {index}")
    classes = _classes(settings.seed, domain, split, index)
    chosen = np.array([rng.choice(digits.by_class[digit]) for digit in classes])
    draws = [partial(_drawn, image) for image in digits.images[chosen]]
    scene = paste(rng, classes, draws, settings.image_size, _SIZE_RANGE)
    shifted = apply_shift(scene.image_bgr, domain, seed=settings.seed)
    return DigitScene(shifted, scene.ink, scene.boxes_xyxy, classes, chosen)


def _generator(seed: int, *key: str) -> np.random.Generator:
    return seeded(str(GENERATOR_VERSION), str(seed), *key)


def _classes(seed: int, domain: str, split: Split, index: int) -> np.ndarray:
    """One to five classes, such that every ten scenes in a row hold each class exactly three times.

    Each block of ten scenes has the counts 1 to 5 twice, in random order, and deals them three shuffled packs of
    the ten classes.
    """
    rng = _generator(seed, domain, split, f"block {index // 10}")
    counts = rng.permutation(np.repeat(np.arange(1, 6), 2))
    packs = np.concatenate([rng.permutation(10) for _ in range(3)])
    start = int(counts[: index % 10].sum())
    return packs[start : start + counts[index % 10]]


def _drawn(image: np.ndarray, rng: np.random.Generator, height: float) -> np.ndarray:
    """The ink of one digit, smooth, turned and stretched a little."""
    master = cv2.resize(np.pad(image, 2), None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    master = cv2.GaussianBlur(master, (0, 0), 2)
    # Small loops (6, 8, 9) are only a little lighter than their strokes in 8 × 8 pixels; this opens them.
    master += 2 * (master - cv2.GaussianBlur(master, (0, 0), 9))
    return draw_ink(rng, master, height)
