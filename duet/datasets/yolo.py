"""Reader of the YOLO layout: an image folder, a folder of label files, and a list of class names."""

from __future__ import annotations

import math
import os
from pathlib import Path

from duet.datasets.annotation import Box, Row, checked_box, known_name
from duet.datasets.faults import Fault, Level, Report
from duet.datasets.source import Source, read_text
from duet.documents import read_yaml
from duet.errors import InputError

SUFFIX = ".txt"
_TOLERANCE = 1e-4  # label files are written with few digits


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names, one per line.

    Raises:
        InputError: when the file is missing, empty, or names a class twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected one class name per line")
    return checked_names([line.strip() for line in read_text(path).splitlines() if line.strip()], str(path))


def checked_names(names: list[str] | tuple[str, ...], where: str) -> tuple[str, ...]:
    """The class names of a domain.

    Raises:
        InputError: when there is none, or one is there twice.
    """
    if not names:
        raise InputError(f"{where}: names no class")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(f"{where}: class '{repeated[0]}' is named twice")
    return tuple(names)


def parse_yolo(data: bytes, file: str, size_hw: tuple[int, int], source: Source, report: Report) -> list[Row]:
    """Read one label file: ``class cx cy w h`` per line, relative to the image; empty for no object.

    Args:
        data: its content.
        file: where it lies, for messages.
        size_hw: of the picture, as it is shown.
        source: the class names; a label's first number is an index into them.
        report: takes every fault; what is faulty is left out.
    """
    found: list[Row] = []
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        report(Fault(Level.ERROR, file, f"not a UTF-8 text file ({error.reason})"))
        return found
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        parsed = _parse(line, len(source.names), where, report)
        if parsed is not None:
            index, box = parsed
            label = known_name(source.names[index], source.names, source.rename, where, report)
            box = checked_box(_corners(box, size_hw), size_hw, where, report)
            if label is not None and box is not None:
                found.append(Row(box, label, number))
    return found


def read_data_yaml(path: Path) -> tuple[tuple[str, ...], dict[str, Source]]:
    """Class names and splits (``train``, ``val``, ``test``) of an Ultralytics data file.

    A split is an image folder; its labels lie where ``images`` in its path is replaced by ``labels``.

    Raises:
        InputError: naming the file and what is missing in it.
    """
    values = read_yaml(path)
    if "names" not in values:
        raise InputError(f"{path}: key 'names' is missing, is it an Ultralytics data file?")
    listed = values["names"]
    if not isinstance(listed, list | dict):
        raise InputError(f"{path}: key 'names' is {listed!r}: expected a list of names, or indices to names")
    if isinstance(listed, dict):
        if set(listed) != set(range(len(listed))):
            raise InputError(f"{path}: key 'names': expected the indices 0 to {len(listed) - 1}")
        listed = [listed[index] for index in range(len(listed))]
    names = checked_names([str(name) for name in listed or ()], f"{path}: key 'names'")
    root = path.parent / _inside(path, "path", str(values.get("path") or "."))
    splits = {key: _split(path, root, key, values[key], names) for key in ("train", "val", "test") if values.get(key)}
    if not splits:
        raise InputError(f"{path}: names none of the splits train, val and test")
    return names, splits


def _split(path: Path, root: Path, key: str, value: object, names: tuple[str, ...]) -> Source:
    if not isinstance(value, str) or value.endswith(".txt"):
        raise InputError(f"{path}: key '{key}' is {value!r}: expected one folder of images")
    images = root / _inside(path, key, value, root)
    before, found, after = images.as_posix().rpartition("/images")
    if not found or (after and not after.startswith("/")):
        raise InputError(f"{path}: key '{key}' is {value!r}: expected a folder 'images', with 'labels' beside it")
    return Source("yolo", images, Path(before + "/labels" + after), names)


def _inside(path: Path, key: str, value: str, root: Path | None = None) -> str:
    """A folder that a data file names; it came with the data, and leads nowhere but into the file's own folder.

    Some tools write ``../train/images`` for what lies in ``train/images``; like Ultralytics, the latter is taken.
    """
    here = Path(os.path.abspath(path.parent))
    if root is not None and value.startswith("../") and (root / value.removeprefix("../")).is_dir():
        value = value.removeprefix("../")
    if "\0" not in value and Path(os.path.abspath((root or here) / value)).is_relative_to(here):
        return value
    raise InputError(
        f"{path}: key '{key}' is {value!r}, which leads out of the file's folder; put the file into the folder of its "
        "data set, or name that folder instead"
    )


def _parse(line: str, classes: int, where: str, report: Report) -> tuple[int, Box] | None:
    def error(what: str) -> None:
        report(Fault(Level.ERROR, where, what))

    parts = line.split()
    if len(parts) != 5:
        return error(f"expected 'class cx cy w h', found {len(parts)} values")
    try:
        index, (cx, cy, w, h) = int(parts[0]), [float(part) for part in parts[1:]]
    except ValueError:
        return error(f"expected an integer and four numbers, found '{line.strip()}'")
    if not 0 <= index < classes:
        return error(f"class {index} does not exist, expected 0 to {classes - 1}")
    if not all(map(math.isfinite, (cx, cy, w, h))) or w <= 0 or h <= 0:
        return error(f"expected a box of positive width and height, found '{line.strip()}'")
    edges = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if min(edges) < -_TOLERANCE or max(edges) > 1 + _TOLERANCE:
        return error(f"the box reaches outside the image, expected 0 to 1, found '{line.strip()}'")
    return index, edges


def _corners(edges: Box, size_hw: tuple[int, int]) -> Box:
    height, width = size_hw
    return edges[0] * width, edges[1] * height, edges[2] * width, edges[3] * height
