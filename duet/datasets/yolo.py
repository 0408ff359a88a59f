"""Reader of the YOLO layout: an image folder, a folder of label files, and a list of class names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from duet.datasets.images import LabelledImage
from duet.errors import InputError

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_TOLERANCE = 1e-4  # label files are written with few digits


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names, one per line.

    Raises:
        InputError: when the file is missing, empty, or names a class twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected one class name per line")
    names = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    if not names:
        raise InputError(f"{path}: names no class")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(f"{path}: class '{repeated[0]}' is named twice")
    return names


def read_split(
    images: Path, labels: Path, names: Sequence[str], split: Path | None = None
) -> tuple[LabelledImage, ...]:
    """Read the images of a split, sorted by name.

    Args:
        images: folder of image files.
        labels: folder of label files: ``class cx cy w h`` per line, relative to the image; an absent or empty file
            means an image without objects.
        names: class names; a label's first number is an index into it.
        split: text file with one image name or stem per line; None takes every image of the folder.

    Raises:
        InputError: naming file and line of the first thing that is wrong.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such image folder")
    if not labels.is_dir():
        raise InputError(f"{labels}: no such label folder")
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    stems: dict[str, Path] = {}
    for path in found:
        other = stems.setdefault(path.stem, path)
        if other is not path:
            raise InputError(f"{path}: has the same stem as {other.name}, and so the same label file")
    chosen = found if split is None else _listed(found, split)
    if not chosen:
        raise InputError(f"{split or images}: holds no image")
    return tuple(_read(path, labels / f"{path.stem}.txt", names) for path in chosen)


def _listed(found: Sequence[Path], split: Path) -> list[Path]:
    if not split.is_file():
        raise InputError(f"{split}: no such split file")
    by_stem = {path.stem: path for path in found}
    chosen: list[Path] = []
    for number, line in enumerate(_text(split).splitlines(), start=1):
        entry = Path(line.strip()).name
        if not entry:
            continue
        path = by_stem.get(entry) or by_stem.get(Path(entry).stem)
        if path is None:
            raise InputError(f"{split}, line {number}: image '{entry}' is not in the image folder")
        chosen.append(path)
    return sorted(chosen)


def _read(path: Path, label_file: Path, names: Sequence[str]) -> LabelledImage:
    height, width = _size_hw(path)
    rows, labels, lines = [], [], []
    text = _text(label_file) if label_file.is_file() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{label_file}, line {number}"
        index, box = _parse(line, where)
        if not 0 <= index < len(names):
            raise InputError(f"{where}: class {index} does not exist, expected 0 to {len(names) - 1}")
        rows.append(_corners(box, width, height))
        labels.append(names[index])
        lines.append(where)
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return LabelledImage(path, (height, width), boxes, tuple(labels), tuple(lines))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file ({error.reason})") from error


def _size_hw(path: Path) -> tuple[int, int]:
    """Height and width as the picture is shown, EXIF orientation applied, as OpenCV and Ultralytics read it."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            if not _is_complete(path, picture.format):
                picture.load()  # decides, because some complete files end in other bytes
    except (UnidentifiedImageError, OSError, ImportError) as error:  # Ultralytics looks for HEIF support
        raise InputError(f"{path}: not a readable image, or cut off") from error
    return (width, height) if turned else (height, width)


def _is_complete(path: Path, kind: str | None) -> bool:
    """Whether a JPEG or PNG file has the end its format asks for; True for other formats."""
    endings = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
    if kind not in endings:
        return True
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - 16))
        return stream.read().endswith(endings[kind])


def _parse(line: str, where: str) -> tuple[int, tuple[float, float, float, float]]:
    parts = line.split()
    if len(parts) != 5:
        raise InputError(f"{where}: expected 'class cx cy w h', found {len(parts)} values")
    try:
        index, values = int(parts[0]), tuple(float(part) for part in parts[1:])
    except ValueError as error:
        raise InputError(f"{where}: expected an integer and four numbers, found '{line.strip()}'") from error
    cx, cy, w, h = values
    if not all(np.isfinite(values)) or w <= 0 or h <= 0:
        raise InputError(f"{where}: expected a box of positive width and height, found '{line.strip()}'")
    edges = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if min(edges) < -_TOLERANCE or max(edges) > 1 + _TOLERANCE:
        raise InputError(f"{where}: the box reaches outside the image, expected 0 to 1, found '{line.strip()}'")
    return index, (cx, cy, w, h)


def _corners(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    cx, cy, w, h = box
    return ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
