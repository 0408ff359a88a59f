"""Reader of PASCAL VOC annotations: one XML file per image.

VOC counts pixels from 1 and names the first and the last pixel of an object; here a box reaches from the upper left
corner of the first to the lower right corner of the last, so 1 is taken from xmin and ymin and nothing from xmax and
ymax.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from duet.datasets.annotation import Box, Row, checked_box, known_name
from duet.datasets.faults import Fault, Level, Report
from duet.datasets.source import Source

SUFFIX = ".xml"
_OBJECT = re.compile(rb"<object[\s>]")
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def parse_voc(data: bytes, file: str, size_hw: tuple[int, int], source: Source, report: Report) -> list[Row]:
    """Read one annotation file.

    Args:
        data: its content.
        file: where it lies, for messages.
        size_hw: of the picture, as it is shown.
        source: the class names.
        report: takes every fault; what is faulty is left out.
    """
    found: list[Row] = []
    root = _root(data, file, report)
    if root is None or not _same_size(root, file, size_hw, report):
        return found
    objects = root.findall("object")
    for item, line in zip(objects, _lines(data, len(objects))):
        where = f"{file}, line {line}"
        box = _box(item, where, report)
        label = known_name((item.findtext("name") or "").strip(), source.names, source.rename, where, report)
        if box is not None and label is not None:
            box = checked_box(box, size_hw, where, report)
            if box is not None:
                found.append(Row(box, label, line, (item.findtext("difficult") or "").strip() == "1"))
    return found


def names_in_voc(files: list[Path]) -> tuple[str, ...]:
    """Class names that occur in annotation files, sorted; files that are not XML are passed over."""
    names: set[str] = set()
    for file in files:
        root = _root(file.read_bytes(), str(file), lambda fault: None)
        if root is not None:
            names.update((item.findtext("name") or "").strip() for item in root.findall("object"))
    return tuple(sorted(names - {""}))


def _root(data: bytes, file: str, report: Report) -> ElementTree.Element | None:
    if not data.strip():
        report(Fault(Level.ERROR, f"{file}, line 1", "an empty file, expected an <annotation>"))
        return None
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        report(Fault(Level.ERROR, f"{file}, line 1", "declares entities, expected plain XML"))
        return None
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:
        line = getattr(error, "position", (1, 0))[0]
        report(Fault(Level.ERROR, f"{file}, line {line}", f"not XML: {error}"))
        return None
    if root.tag != "annotation":
        report(Fault(Level.ERROR, f"{file}, line 1", f"expected an <annotation>, found <{root.tag}>"))
        return None
    return root


def _same_size(root: ElementTree.Element, file: str, size_hw: tuple[int, int], report: Report) -> bool:
    """Whether the stated size, if there is one, is the picture's."""
    size = root.find("size")
    if size is None:
        return True
    stated = (size.findtext("height") or "0", size.findtext("width") or "0")
    if stated == (str(size_hw[0]), str(size_hw[1])) or "0" in stated:
        return True
    hint = ""
    if stated == (str(size_hw[1]), str(size_hw[0])):
        hint = "; its EXIF orientation turns it, turn the picture itself or exchange the boxes"
    found = f"the annotation is of an image of {stated[1]} × {stated[0]}, the picture is shown with"
    report(Fault(Level.ERROR, file, f"{found} {size_hw[1]} × {size_hw[0]} pixels{hint}"))
    return False


def _lines(data: bytes, count: int) -> list[int]:
    """The line of each ``<object>``; ElementTree does not keep them."""
    lines, line, place = [], 1, 0
    for match in _OBJECT.finditer(data):
        line += data.count(b"\n", place, match.start())
        place = match.start()
        lines.append(line)
    return lines if len(lines) == count else [1] * count  # another encoding, or the tag in a comment


def _box(item: ElementTree.Element, where: str, report: Report) -> Box | None:
    bounds = item.find("bndbox")
    if bounds is None:
        report(Fault(Level.ERROR, where, "the <object> has no <bndbox>"))
        return None
    values = {child.tag: child.text for child in bounds}
    try:
        left, top = float(values["xmin"]), float(values["ymin"])
        right, bottom = float(values["xmax"]), float(values["ymax"])
    except (KeyError, TypeError, ValueError):
        found = ", ".join(f"{edge} {values.get(edge)!r}" for edge in _EDGES)
        report(Fault(Level.ERROR, where, f"expected four numbers, found {found}"))
        return None
    if left - 1 >= right or top - 1 >= bottom:  # so that a part of a pixel can be written too
        found = ", ".join(f"{edge} {values[edge]}" for edge in _EDGES)
        report(Fault(Level.ERROR, where, f"expected xmin ≤ xmax and ymin ≤ ymax, found {found}"))
        return None
    return left - 1, top - 1, right, bottom
