"""The embedded scenes: handwritten digits on coloured textures, in several domains, written as a YOLO data set.

The digits are scikit-learn's 1,797 real ones; training and test scenes draw from separate ranges of them. Every
scene depends on (seed, domain, split, index) alone, so neither the order of writing nor the number of scenes
changes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from duet.datasets.domains import SHIFTS, apply_shift, smooth_field
from duet.errors import nearest

CLASS_NAMES = tuple(str(digit) for digit in range(10))
DIGIT_COUNT = 1797
# Part of the folder's name: raise it whenever a change below changes a pixel or a label.
GENERATOR_VERSION = 1

_Split = Literal["train", "test"]
_SPLITS: tuple[_Split, ...] = ("train", "test")
_INDEX_FILE = "scenes.json"
_SIZE_RANGE = (0.15, 0.35)  # height of a digit / side of the picture: 24 to 56 of 160 pixels
_MAX_OVERLAP = 0.1  # shared area / area of the smaller box, which also keeps the IoU below
_SOFT = 2  # pixels that the soft edge of the ink may reach beyond its box; no box is nearer to the border
_MIN_LUMA_CONTRAST = 0.38
_EDGE = 0.5  # ink at which a stroke ends
_LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)


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
    def folder_name(self) -> str:
        """``scenes-`` and twelve hexadecimal digits of the settings and the generator's version."""
        text = json.dumps({"generator": GENERATOR_VERSION, **asdict(self)}, sort_keys=True)
        return f"scenes-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


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
class Scene:
    """One picture and what stands in it.

    Args:
        image_bgr: ``(S, S, 3)``, uint8.
        ink: ``(n, S, S)``, float32, 0 to 1: each digit's ink.
        boxes_xyxy: ``(n, 4)``, int64, in pixels; the right and lower edges are exclusive.
        classes: ``(n,)``, int64, 0 to 9.
        digits: ``(n,)``, int64: index of each digit in scikit-learn's set.
    """

    image_bgr: np.ndarray
    ink: np.ndarray = field(repr=False)
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    digits: np.ndarray


def write_scenes(root: Path, settings: SceneSettings, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the scenes once and say where they are.

    The layout is ``<domain>/<train|test>/<images|labels>/NNNN.<png|txt>`` with ``classes.txt`` per domain and
    ``scenes.json`` (settings, sha256 of all contents) at the top. Everything is written to a temporary folder
    that is renamed at the end, so the folder is complete or absent; a complete one is returned at once.

    Args:
        root: where the folder of these settings stands or will stand; made when it is missing.
        settings: what to write.
        progress: called with (scenes written, scenes in all) after every scene.

    Returns:
        ``root/scenes-<hash>``.

    Raises:
        ImportError: when scikit-learn is not installed and there is something to write.
        ValueError: when a range of digits lacks one of the ten classes.
    """
    folder = Path(root) / settings.folder_name
    if (folder / _INDEX_FILE).is_file():
        return folder
    digits = {split: load_digits(_digit_range(settings, split)) for split in _SPLITS}
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_domains(part, settings, digits, progress)
        index = {"generator": GENERATOR_VERSION, "settings": asdict(settings), "sha256": content_hash(part)}
        (part / _INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        part.chmod(0o755)  # mkdtemp keeps others out; the cache may be shared
        _move_into_place(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def content_hash(folder: Path) -> str:
    """The sha256 over the paths and contents of a folder's files, without ``scenes.json``."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _INDEX_FILE):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


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


def render_scene(settings: SceneSettings, digits: Digits, domain: str, split: _Split, index: int) -> Scene:
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
    ink, boxes = _place(rng, digits.images[chosen], settings.image_size)
    image = _texture(rng, settings.image_size)
    for layer, box in zip(ink, boxes):
        colour = _ink_colour(rng, image[box[1] : box[3], box[0] : box[2]])
        image += layer[..., None] * (colour - image)
    picture = (image * 255 + 0.5).astype(np.uint8)
    return Scene(apply_shift(picture, domain, seed=settings.seed), ink, boxes, classes, chosen)


def _digit_range(settings: SceneSettings, split: _Split) -> tuple[int, int]:
    return settings.train_digits if split == "train" else settings.test_digits


def _write_domains(
    folder: Path,
    settings: SceneSettings,
    digits: dict[_Split, Digits],
    progress: Callable[[int, int], None] | None,
) -> None:
    counts = {"train": settings.train_scenes, "test": settings.test_scenes}
    total, done = sum(counts.values()) * len(settings.domains), 0
    for domain in settings.domains:
        for split in _SPLITS:
            images, labels = (folder / domain / split / kind for kind in ("images", "labels"))
            images.mkdir(parents=True)
            labels.mkdir()
            for index in range(counts[split]):
                scene = render_scene(settings, digits[split], domain, split, index)
                _write_picture(images / f"{index:04d}.png", scene.image_bgr)
                (labels / f"{index:04d}.txt").write_text(_label_text(scene), encoding="utf-8")
                done += 1
                if progress is not None:
                    progress(done, total)
        (folder / domain / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")


def _write_picture(path: Path, image_bgr: np.ndarray) -> None:
    # Through bytes: cv2.imwrite reports a full disk by its return value only, and fails on some non-ASCII paths.
    encoded, data = cv2.imencode(".png", image_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert encoded
    path.write_bytes(data.tobytes())


def _label_text(scene: Scene) -> str:
    """YOLO's lines: class, centre x, centre y, width, height, as shares of the picture."""
    size = scene.image_bgr.shape[0]
    lines = []
    for digit, (left, top, right, bottom) in zip(scene.classes, scene.boxes_xyxy):
        values = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
        lines.append(" ".join([str(digit), *(f"{value / size:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def _move_into_place(part: Path, folder: Path) -> None:
    """Rename; what stands there without an index was half written by other means and goes away first."""
    if folder.exists() and not (folder / _INDEX_FILE).is_file():
        shutil.rmtree(folder)
    try:
        os.rename(part, folder)
    except OSError:
        # Another process finished the same scenes in the meantime: its files are ours, byte for byte.
        if not (folder / _INDEX_FILE).is_file():
            raise


def _generator(seed: int, *key: str) -> np.random.Generator:
    digest = hashlib.sha256("/".join([str(GENERATOR_VERSION), str(seed), *key]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _classes(seed: int, domain: str, split: _Split, index: int) -> np.ndarray:
    """One to five classes, such that every ten scenes in a row hold each class exactly three times.

    Each block of ten scenes has the counts 1 to 5 twice, in random order, and deals them three shuffled packs of
    the ten classes.
    """
    rng = _generator(seed, domain, split, f"block {index // 10}")
    counts = rng.permutation(np.repeat(np.arange(1, 6), 2))
    packs = np.concatenate([rng.permutation(10) for _ in range(3)])
    start = int(counts[: index % 10].sum())
    return packs[start : start + counts[index % 10]]


def _place(rng: np.random.Generator, images: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits of random size, slant and position, without much overlap.

    Returns:
        The ink ``(n, S, S)`` of each digit alone and the boxes around it ``(n, 4)``.
    """
    heights = rng.uniform(*_SIZE_RANGE, len(images)) * size
    while True:
        patches = [_enlarge(rng, image, height) for image, height in zip(images, heights)]
        boxes = _free_boxes(rng, [patch.shape for patch in patches], size)
        if boxes is not None:
            break
        heights = heights * 0.9
    ink = np.zeros((len(images), size, size), np.float32)
    for layer, patch, (left, top, right, bottom) in zip(ink, patches, boxes):
        layer[top - _SOFT : bottom + _SOFT, left - _SOFT : right + _SOFT] = patch
    return ink, boxes


def _enlarge(rng: np.random.Generator, image: np.ndarray, height: float) -> np.ndarray:
    """The ink of one digit, smooth, turned and stretched a little, with `_SOFT` pixels around its box."""
    master = cv2.resize(np.pad(image, 2), None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    master = cv2.GaussianBlur(master, (0, 0), 2)
    # Small loops (6, 8, 9) are only a little lighter than their strokes in 8 × 8 pixels; this opens them.
    master += 2 * (master - cv2.GaussianBlur(master, (0, 0), 9))
    left, top, right, bottom = _ink_box(master > _EDGE)
    scale = height / (bottom - top)
    turn = np.deg2rad(rng.uniform(-15, 15))
    stretch = np.array([rng.uniform(0.9, 1.2), 1.0])
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * scale * stretch
    side = int(np.ceil(2.2 * max(height, (right - left) * scale))) + 4
    centre = np.array([(left + right - 1) / 2, (top + bottom - 1) / 2])
    shift = (side - 1) / 2 - linear @ centre
    turned = cv2.warpAffine(master, np.hstack([linear, shift[:, None]]), (side, side), flags=cv2.INTER_LINEAR)
    ink = np.clip((turned - _EDGE) / 0.4 + 0.5, 0, 1)
    left, top, right, bottom = _ink_box(ink >= 0.5)
    return ink[top - _SOFT : bottom + _SOFT, left - _SOFT : right + _SOFT]


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
