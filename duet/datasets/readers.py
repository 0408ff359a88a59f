"""The labels of one source, whatever its format: which images there are, and the boxes of each."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from typing import Protocol

from duet.datasets.annotation import Row
from duet.datasets.coco import CocoFile
from duet.datasets.faults import Fault, Level, Report
from duet.datasets.pictures import folder_names
from duet.datasets.source import Source, chosen_images, listed_images, stem_of
from duet.datasets.voc import SUFFIX as VOC_SUFFIX
from duet.datasets.voc import parse_voc
from duet.datasets.yolo import SUFFIX as YOLO_SUFFIX
from duet.datasets.yolo import parse_yolo
from duet.documents import MOST_JSON_BYTES, read_bytes

CLASSES_FILE = "classes.txt"  # may lie among the label files
LABEL_SUFFIX = {"voc": VOC_SUFFIX, "yolo": YOLO_SUFFIX}
_SCHEMA = 1  # rises when an index file changes its meaning


class Reader(Protocol):
    """The labels of one source.

    Args:
        images: names of the split's images, below the source's image folder.
    """

    images: list[str]

    def parts(self, size: int) -> list[Reader]:
        """Readers of at most so many images each, that can go to another process; itself where that does not pay."""

    def digest(self) -> str:
        """Hash of everything but the pictures that decides what is read."""

    def rows(self, image: str, size_hw: tuple[int, int], report: Report) -> list[Row]:
        """The boxes of one image."""


def open_reader(source: Source, report: Report) -> Reader:
    """The reader of a source's format.

    Raises:
        InputError: when a folder or a file of the source is not there.
    """
    return _JsonReader(source, report) if source.format == "coco" else _FileReader(source, report)


class _FileReader:
    """VOC and YOLO: one label file per image."""

    def __init__(self, source: Source, report: Report) -> None:
        self._source = source
        self._suffix = LABEL_SUFFIX[source.format]
        self._folder = f"{source.labels}{os.sep}"
        self._parse = parse_voc if source.format == "voc" else parse_yolo
        self.images = chosen_images(source, report)
        stems = {name: stem_of(name) for name in self.images}
        present = set(folder_names(source.labels, "label"))
        self._report_unpaired(stems, present, report)
        self._files = {name: f"{self._folder}{stem}{self._suffix}" for name, stem in stems.items()}
        self._data = {
            name: _bytes(self._files[name], report)
            for name, stem in stems.items()
            if f"{stem}{self._suffix}" in present
        }

    def parts(self, size: int) -> list[Reader]:
        return [self._part(self.images[start : start + size]) for start in range(0, len(self.images), size)]

    def digest(self) -> str:
        key = _settings_digest(self._source)
        for name in self.images:
            data = self._data.get(name)
            size = "absent" if data is None else len(data)
            key.update(f"\0{name}\0{size}\0".encode("utf-8", "surrogateescape") + (data or b""))
        return key.hexdigest()

    def rows(self, image: str, size_hw: tuple[int, int], report: Report) -> list[Row]:
        data = self._data.get(image)
        if data is None:
            return []
        return self._parse(data, self._files[image], size_hw, self._source, report)

    def _part(self, names: list[str]) -> _FileReader:
        part = copy.copy(self)
        part.images = names
        part._files = {name: self._files[name] for name in names}
        part._data = {name: self._data[name] for name in names if name in self._data}
        return part

    def _report_unpaired(self, stems: dict[str, str], present: set[str], report: Report) -> None:
        """Images without their XML, and label files without an image where the whole folder is taken."""
        voc = self._source.format == "voc"
        for name, stem in stems.items():
            if voc and f"{stem}{self._suffix}" not in present:
                what = f"has no annotation file {self._folder}{stem}{self._suffix}"
                report(Fault(Level.ERROR, str(self._source.images / name), what))
        if self._source.listed is None:
            known, level = set(stems.values()), Level.ERROR if voc else Level.WARNING
            for name in sorted(present):
                stem, suffix = os.path.splitext(name)
                if suffix == self._suffix and stem not in known and name != CLASSES_FILE:
                    report(Fault(level, f"{self._folder}{name}", f"image '{stem}' is not in the image folder"))


class _JsonReader:
    """COCO: one file for all images."""

    def __init__(self, source: Source, report: Report) -> None:
        self._source = source
        self._data = read_bytes(source.labels, MOST_JSON_BYTES)
        self._file = CocoFile(self._data, source.labels, report)
        folder_names(source.images, "image")
        there = [name for name in self._file.images if (source.images / name).is_file()]
        if source.listed is not None:
            self.images = listed_images(source.listed, there, report)
            return
        for name in sorted(self._file.images.keys() - set(there)):
            report(Fault(Level.ERROR, str(source.labels), f"image '{name}' is not in the image folder"))
        self.images = sorted(there)

    def parts(self, size: int) -> list[Reader]:
        return [self]

    def digest(self) -> str:
        key = _settings_digest(self._source)
        key.update(self._data)
        return key.hexdigest()

    def rows(self, image: str, size_hw: tuple[int, int], report: Report) -> list[Row]:
        return self._file.rows(image, size_hw, self._source, report)


def _bytes(path: str, report: Report) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as stream:
            return stream.read()
    except OSError as error:
        report(Fault(Level.ERROR, path, f"cannot be read ({error.strerror})"))
        return None


def _settings_digest(source: Source) -> hashlib._Hash:
    settings = [_SCHEMA, source.format, str(source.images.absolute()), source.names, sorted(source.rename.items())]
    key = hashlib.sha256(json.dumps(settings, ensure_ascii=True).encode())
    if source.listed is not None:
        key.update(source.listed.read_bytes())
    return key
