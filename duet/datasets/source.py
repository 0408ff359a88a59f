"""Where the images and labels of one split lie, and which images belong to it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from duet.datasets.faults import Fault, Level, Report
from duet.datasets.pictures import image_names
from duet.errors import InputError

Format = Literal["yolo", "voc", "coco"]
FORMATS: tuple[Format, ...] = ("yolo", "voc", "coco")


@dataclass(frozen=True)
class Source:
    """One folder of images and what labels them.

    Args:
        format: ``yolo``: one text file per image; ``voc``: one XML file per image; ``coco``: one JSON file.
        images: the image folder.
        labels: the folder of label files; for ``coco`` the JSON file.
        names: class names as the labels use them; for ``yolo`` in the order of the indices.
        listed: file that names the images of the split, one per line; None takes all.
        rename: class names of the labels to those of the series; None leaves the class out.
    """

    format: Format
    images: Path
    labels: Path
    names: tuple[str, ...]
    listed: Path | None = None
    rename: Mapping[str, str | None] = field(default_factory=dict)


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        InputError: when it is absent, may not be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file ({error.reason})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def chosen_images(source: Source, report: Report) -> list[str]:
    """Names of a split's images that have one label file each, sorted.

    Raises:
        InputError: when the image folder or the split file is not there.
    """
    found = image_names(source.images)
    stems: dict[str, str] = {}
    for name in found:
        other = stems.setdefault(stem_of(name), name)
        if other is not name:
            what = f"has the same stem as {other}, and so the same label file"
            report(Fault(Level.ERROR, str(source.images / name), what))
    return found if source.listed is None else listed_images(source.listed, found, report)


def listed_images(listed: Path, found: Iterable[str], report: Report) -> list[str]:
    """Those of the images that a split file names, by stem or by file name, sorted.

    Args:
        listed: the split file.
        found: the images of the folder; folders in front of their names are not compared.
        report: takes names that are not among them, or are there twice.

    Raises:
        InputError: when the split file is not there.
    """
    if not listed.is_file():
        raise InputError(f"{listed}: no such split file")
    by_name = {key: name for name in found for key in _keys(name)}
    chosen: dict[str, int] = {}
    for number, line in enumerate(read_text(listed).splitlines(), start=1):
        entry = line.strip().replace("\\", "/").rpartition("/")[2]
        if not entry:
            continue
        name = by_name.get(entry) or by_name.get(os.path.splitext(entry)[0])
        where = f"{listed}, line {number}"
        if name is None:
            report(Fault(Level.ERROR, where, f"image '{entry}' is not in the image folder"))
        elif name in chosen:
            report(Fault(Level.WARNING, where, f"image '{entry}' was named in line {chosen[name]} already"))
        else:
            chosen[name] = number
    return sorted(chosen)


def stem_of(name: str) -> str:
    """An image name without its suffix."""
    return name.rpartition(".")[0]


def _keys(name: str) -> tuple[str, str]:
    base = name.rpartition("/")[2]
    return base, stem_of(base)
