"""Reader of COCO's annotations: one JSON file for all images of a split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duet.datasets.annotation import Row, checked_box, known_name
from duet.datasets.faults import Fault, Level, Report
from duet.datasets.source import Source
from duet.documents import parse_json
from duet.errors import InputError
from duet.paths import stays_inside


class CocoFile:
    """An annotation file, sorted by image.

    Args:
        data: its content.
        file: where it lies, for messages.
        report: takes what is wrong with ids.

    Raises:
        InputError: when it is not JSON, or has no images, annotations and categories.
    """

    def __init__(self, data: bytes, file: Path, report: Report) -> None:
        self.file = file
        document = _document(data, file)
        self.categories: dict[Any, str] = {}
        for item in document["categories"]:
            key = _id(item, "id")
            if key is None or key in self.categories:
                raise InputError(f"{file}: category id {item.get('id')!r} is no id, or given twice")
            self.categories[key] = str(item.get("name", "")).strip()
        self.images: dict[str, Mapping[str, Any]] = {}
        by_id: dict[Any, str] = {}
        for item in document["images"]:
            name, key = item.get("file_name"), _id(item, "id")
            if not isinstance(name, str) or name in self.images or key is None or key in by_id:
                report(Fault(Level.ERROR, f"{file}, image {item.get('id')}", "its file_name or id is absent or double"))
                continue
            if not stays_inside(name):
                report(
                    Fault(Level.ERROR, f"{file}, image {item.get('id')}", f"{name!r} is not inside the image folder")
                )
                continue
            self.images[name], by_id[key] = item, name
        self._annotations: dict[str, list[Mapping[str, Any]]] = {}
        for item in document["annotations"]:
            name = by_id.get(_id(item, "image_id"))
            if name is None:
                where = f"{file}, annotation {item.get('id')}"
                report(Fault(Level.ERROR, where, f"image_id {item.get('image_id')!r} is no image of the file"))
            else:
                self._annotations.setdefault(name, []).append(item)

    def rows(self, name: str, size_hw: tuple[int, int], source: Source, report: Report) -> list[Row]:
        """The boxes of the image with this ``file_name``; faults as for the other readers."""
        found: list[Row] = []
        entry = self.images[name]
        stated = (entry.get("height") or size_hw[0], entry.get("width") or size_hw[1])
        if stated != size_hw:
            where = f"{self.file}, image {entry.get('id')}"
            what = f"stated with {stated[1]} × {stated[0]} pixels, {name} is shown with {size_hw[1]} × {size_hw[0]}"
            report(Fault(Level.ERROR, where, what))
            return found
        for item in self._annotations.get(name, ()):
            self._add(found, item, size_hw, source, report)
        return found

    def _add(
        self, found: list[Row], item: Mapping[str, Any], size_hw: tuple[int, int], source: Source, report: Report
    ) -> None:
        where = f"{self.file}, annotation {item.get('id')}"
        category = _id(item, "category_id")
        if category not in self.categories:
            report(Fault(Level.ERROR, where, f"category_id {item.get('category_id')!r} is no category of the file"))
            return
        try:
            x, y, width, height = [float(value) for value in item["bbox"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            report(Fault(Level.ERROR, where, f"expected a bbox of four numbers, found {item.get('bbox')!r}"))
            return
        name = self.categories[category]
        label = known_name(name, source.names, source.rename, where, report)
        box = checked_box((x, y, x + width, y + height), size_hw, where, report)
        if label is not None and box is not None:
            number = item["id"] if type(item.get("id")) is int else 0
            found.append(Row(box, label, number, bool(item.get("difficult")), bool(item.get("iscrowd"))))


def _id(item: Mapping[str, Any], key: str) -> int | str | None:
    """An id; None for what cannot be one."""
    value = item.get(key)
    return value if isinstance(value, int | str) else None


def _document(data: bytes, file: Path) -> dict[str, list[Mapping[str, Any]]]:
    document = parse_json(data, str(file))
    for key in ("images", "annotations", "categories"):
        items = document.get(key) if isinstance(document, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise InputError(f"{file}: key '{key}' is missing or no list of objects; is it a COCO detection file?")
    return document
