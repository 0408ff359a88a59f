"""Read a split once and keep what was read, keyed by content.

The key is the hash of every label file's bytes, the split file, the class names and the image names. For the image
files themselves size and time of change stand for their content: hashing the pictures of a large set would take longer
than reading it. An index is used when its key fits and no image changed since; otherwise the split is read again.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np

from duet.datasets.annotation import Row
from duet.datasets.coco import CocoFile
from duet.datasets.faults import Fault, Level, Report, refuse
from duet.datasets.images import LabelledImage
from duet.datasets.pictures import PictureFacts, folder_names, picture_facts
from duet.datasets.source import Source, chosen_images, listed_images, stem_of
from duet.datasets.voc import SUFFIX as VOC_SUFFIX
from duet.datasets.voc import parse_voc
from duet.datasets.yolo import SUFFIX as YOLO_SUFFIX
from duet.datasets.yolo import parse_yolo
from duet.errors import InputError
from duet.paths import cache_folder
from duet.state import write_atomic

SCHEMA = 1  # rises when an index file changes its meaning
DIGITS = 6  # decimals of a pixel; so far a conversion to another format and back returns the same box

CLASSES_FILE = "classes.txt"  # may lie among the label files
_SUFFIX = {"voc": VOC_SUFFIX, "yolo": YOLO_SUFFIX}

Progress = Callable[[int, int], None]


class Reader(Protocol):
    """The labels of one source.

    Args:
        images: names of the split's images, below the source's image folder.
    """

    images: list[str]

    def digest(self) -> str:
        """Hash of everything but the pictures that decides what is read."""

    def rows(self, image: str, size_hw: tuple[int, int], report: Report) -> list[Row]:
        """The boxes of one image."""


def read_source(source: Source, progress: Progress | None = None) -> tuple[LabelledImage, ...]:
    """The images of a split, sorted by name, from the index when there is one.

    Args:
        source: where they lie.
        progress: called with images read and images in all while an index is made.

    Raises:
        InputError: naming file and line of the first error.
    """
    with _without_collector():
        reader = open_reader(source, refuse)
        if not reader.images:
            raise InputError(f"{source.listed or source.images}: holds no image")
        path = cache_folder() / "indexes" / f"{reader.digest()[:24]}.npz"
        stamps = _stamps(source.images, reader.images)
        kept = _load(path, stamps)
        if kept is None:
            kept = _read(source.images, reader, progress)
            _store(path, kept, stamps)
        return kept.labelled_images(source, reader.images)


def read_and_report(
    source: Source, report: Report, progress: Progress | None = None
) -> list[tuple[LabelledImage, PictureFacts]]:
    """The readable images of a split with what their headers say; every fault is reported, nothing is kept.

    Args:
        source: where they lie.
        report: takes every fault; what is faulty is left out.
        progress: called with images read and images in all.

    Raises:
        InputError: when folders or files of the source itself are not there.
    """
    reader = open_reader(source, report)
    found = []
    for done, name in enumerate(reader.images, start=1):
        path = source.images / name
        if progress:
            progress(done, len(reader.images))
        try:
            facts = picture_facts(path)
        except InputError as error:
            report(Fault(Level.ERROR, str(path), str(error).removeprefix(f"{path}: ")))
            continue
        columns = _Columns.of([facts.size_hw], [reader.rows(name, facts.size_hw, report)])
        found.append((columns.labelled_images(source, [name])[0], facts))
    return found


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
        self._suffix = _SUFFIX[source.format]
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
        self._data = _bytes(str(source.labels), refuse)
        self._file = CocoFile(self._data, source.labels, report)
        folder_names(source.images, "image")
        there = [name for name in self._file.images if (source.images / name).is_file()]
        if source.listed is not None:
            self.images = listed_images(source.listed, there, report)
            return
        for name in sorted(self._file.images.keys() - set(there)):
            report(Fault(Level.ERROR, str(source.labels), f"image '{name}' is not in the image folder"))
        self.images = sorted(there)

    def digest(self) -> str:
        key = _settings_digest(self._source)
        key.update(self._data)
        return key.hexdigest()

    def rows(self, image: str, size_hw: tuple[int, int], report: Report) -> list[Row]:
        return self._file.rows(image, size_hw, self._source, report)


class _Columns:
    """The content of a split as arrays; box number i belongs to image ``owner[i]``."""

    def __init__(self, arrays: dict[str, np.ndarray], labels: list[str]) -> None:
        self.arrays, self.labels = arrays, labels

    @classmethod
    def of(cls, sizes_hw: list[tuple[int, int]], rows: list[list[Row]]) -> _Columns:
        boxes, names, numbers, difficult, crowd = zip(*itertools.chain(*rows)) if any(rows) else ((),) * 5
        labels = sorted(set(names))
        position = {label: number for number, label in enumerate(labels)}
        corners = np.fromiter(itertools.chain.from_iterable(boxes), dtype=np.float64, count=4 * len(boxes))
        arrays = {
            "sizes": np.array(sizes_hw, dtype=np.int32).reshape(-1, 2),
            "counts": np.array([len(item) for item in rows], dtype=np.int32),
            "boxes": corners.round(DIGITS).reshape(-1, 4) + 0.0,  # no negative zero
            "classes": np.array([position[name] for name in names], dtype=np.int32),
            "numbers": np.array(numbers, dtype=np.int64),
            "difficult": np.array(difficult, dtype=bool),
            "crowd": np.array(crowd, dtype=bool),
        }
        return cls(arrays, labels)

    def labelled_images(self, source: Source, images: list[str]) -> tuple[LabelledImage, ...]:
        values, suffix = self.arrays, _SUFFIX.get(source.format)
        ends = np.cumsum(values["counts"]).tolist()
        sizes, numbers, classes = values["sizes"].tolist(), values["numbers"].tolist(), values["classes"].tolist()
        folder, unit = f"{source.labels}{os.sep}", "line" if suffix else "annotation"
        boxes, difficult, crowd = values["boxes"], values["difficult"], values["crowd"]
        found, start = [], 0
        for image, size, end in zip(images, sizes, ends):
            file = f"{folder}{stem_of(image)}{suffix}" if suffix else str(source.labels)
            part = slice(start, end)
            found.append(
                LabelledImage(
                    path=source.images / image,
                    size_hw=(size[0], size[1]),
                    boxes_xyxy=boxes[part],
                    labels=tuple([self.labels[number] for number in classes[part]]),
                    lines=tuple([f"{file}, {unit} {number}" for number in numbers[part]]),
                    difficult=difficult[part],
                    crowd=crowd[part],
                )
            )
            start = end
        return tuple(found)


def _read(folder: Path, reader: Reader, progress: Progress | None) -> _Columns:
    sizes_hw, rows, prefix = [], [], f"{folder}{os.sep}"
    for done, name in enumerate(reader.images, start=1):
        sizes_hw.append(picture_facts(prefix + name).size_hw)
        rows.append(reader.rows(name, sizes_hw[-1], refuse))
        if progress:
            progress(done, len(reader.images))
    return _Columns.of(sizes_hw, rows)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Many small tuples and no cycle among them: looking for cycles again and again takes a fifth of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _bytes(path: str, report: Report) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as stream:
            return stream.read()
    except OSError as error:
        report(Fault(Level.ERROR, path, f"cannot be read ({error.strerror})"))
        return None


def _settings_digest(source: Source) -> hashlib._Hash:
    settings = [SCHEMA, source.format, str(source.images.absolute()), source.names, sorted(source.rename.items())]
    key = hashlib.sha256(json.dumps(settings, ensure_ascii=True).encode())
    if source.listed is not None:
        key.update(source.listed.read_bytes())
    return key


def _stamps(folder: Path, images: list[str]) -> np.ndarray:
    """Size and time of change of each image, (N, 2) int64; zeros for one that is not there."""
    rows, prefix = [], f"{folder}{os.sep}"
    for name in images:
        try:
            found = os.stat(prefix + name)
            rows.append((found.st_size, found.st_mtime_ns))
        except OSError:
            rows.append((0, 0))
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def _store(path: Path, columns: _Columns, stamps: np.ndarray) -> None:
    words = np.array(json.dumps(columns.labels))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, stamps=stamps, words=words, **columns.arrays)

    write_atomic(path, write)


def _load(path: Path, stamps: np.ndarray) -> _Columns | None:
    """The kept index; None when there is none, it is damaged, or an image changed."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if not np.array_equal(arrays.pop("stamps"), stamps):
            return None
        labels = json.loads(str(arrays.pop("words")))
        return _Columns(arrays, labels) if len(arrays["sizes"]) == len(stamps) else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
