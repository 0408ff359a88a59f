"""Read a split once and keep what was read, keyed by content.

The key is the hash of every label file's bytes, the split file, the class names and the image names. For the image
files themselves size and time of change stand for their content: hashing the pictures of a large set would take longer
than reading it. An index is used when its key fits and no image changed since; otherwise the split is read again.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from duet.datasets.columns import Columns
from duet.datasets.faults import Fault, Level, Report, refuse
from duet.datasets.images import LabelledImage
from duet.datasets.pictures import PictureFacts, picture_facts
from duet.datasets.readers import Reader, open_reader
from duet.datasets.source import Source
from duet.errors import InputError
from duet.paths import cache_folder
from duet.state import write_atomic

PART = 2500  # images that one process reads at a time

Progress = Callable[[int, int], None]


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
        columns = Columns.of([facts.size_hw], [reader.rows(name, facts.size_hw, report)])
        found.append((columns.labelled_images(source, [name])[0], facts))
    return found


def _read(folder: Path, reader: Reader, progress: Progress | None) -> Columns:
    """Every image of a reader, a large split in several processes."""
    parts = reader.parts(PART)
    workers = min(len(parts), _cores())
    if workers < 2:
        return _read_part(folder, reader, progress)
    found: list[Columns] = []
    # Forked, as the trainer's loaders are: a fresh interpreter would take as long as it saves.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for columns in pool.map(partial(_read_part, folder), parts):
            found.append(columns)
            if progress:
                progress(sum(len(item.arrays["sizes"]) for item in found), len(reader.images))
    return Columns.joined(found)


def _read_part(folder: Path, reader: Reader, progress: Progress | None = None) -> Columns:
    sizes_hw, rows, prefix = [], [], f"{folder}{os.sep}"
    for done, name in enumerate(reader.images, start=1):
        sizes_hw.append(picture_facts(prefix + name).size_hw)
        rows.append(reader.rows(name, sizes_hw[-1], refuse))
        if progress:
            progress(done, len(reader.images))
    return Columns.of(sizes_hw, rows)


def _cores() -> int:
    """Cores of this process, at most 8; 1 where processes cannot be forked safely."""
    return min(len(os.sched_getaffinity(0)), 8) if sys.platform == "linux" else 1


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


def _store(path: Path, columns: Columns, stamps: np.ndarray) -> None:
    words = np.array(json.dumps(columns.labels))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, stamps=stamps, words=words, **columns.arrays)

    write_atomic(path, write)


def _load(path: Path, stamps: np.ndarray) -> Columns | None:
    """The kept index; None when there is none, it is damaged, or an image changed."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if not np.array_equal(arrays.pop("stamps"), stamps):
            return None
        labels = json.loads(str(arrays.pop("words")))
        return Columns(arrays, labels) if len(arrays["sizes"]) == len(stamps) else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
