"""Everything that is wrong with the data of a series, and how many images and boxes there are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from duet.datasets.faults import Fault, FaultList, Level, Report, no_box_of, not_of_the_task
from duet.datasets.images import LabelledImage
from duet.datasets.index import read_and_report
from duet.datasets.pictures import PictureFacts, folder_names
from duet.datasets.series_file import DomainFiles, SeriesFile
from duet.datasets.source import Source
from duet.errors import InputError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SplitCounts:
    """What one split of a domain holds.

    Args:
        domain: name of the domain.
        split: ``train`` or ``test``.
        images: readable images.
        boxes: boxes by class name, without ignored ones.
        ignored: difficult and crowd boxes by class name.
    """

    domain: str
    split: str
    images: int
    boxes: Counter[str]
    ignored: Counter[str]


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Args:
        counts: one entry per split.
        faults: every fault, errors first.
    """

    counts: tuple[SplitCounts, ...]
    faults: tuple[Fault, ...]

    @property
    def errors(self) -> tuple[Fault, ...]:
        """The faults for which training is refused."""
        return tuple(fault for fault in self.faults if fault.level is Level.ERROR)


@dataclass(frozen=True)
class _Split:
    domain: str
    split: str
    images: tuple[LabelledImage, ...]
    drawn_anew: bool

    @property
    def title(self) -> str:
        return f"{self.domain} {self.split}"


def check_series(source: SeriesFile, progress: Progress | None = None) -> CheckResult:
    """Look at every file of a series' domains.

    Args:
        source: the series, with domains of its own (not generated scenes).
        progress: called with what is read, how much is done, and how much there is.

    Raises:
        InputError: when the series is made of generated scenes, or a shipped one was not told where its pictures are.
    """
    if source.generated:
        raise InputError(f"{source.path}: the series is made of generated scenes, there is nothing to check")
    source.refuse_without_root()
    report = FaultList()
    splits = [split for name in source.section.domains for split in _domain(source, name, report, progress)]
    _report_same_pictures(splits, report)
    order = list(Level)
    faults = sorted(report.faults, key=lambda fault: order.index(fault.level))
    return CheckResult(tuple(_counts(split) for split in splits), tuple(faults))


def _domain(source: SeriesFile, name: str, report: Report, progress: Progress | None) -> list[_Split]:
    try:
        files = source.domain(name)
    except InputError as error:
        report(_fault(error))
        return []
    section = source.section.domains[name]
    splits = []
    for split, parts in (("train", files.train), ("test", files.test)):
        expected = [part.count for part in getattr(section, split) or ()] or [None] * len(parts)
        images: list[LabelledImage] = []
        for part, count in zip(parts, expected):
            told = (lambda done, total, split=split: progress(f"{name} {split}", done, total)) if progress else None
            images += _part(part, count, report, told)
        if parts:
            splits.append(_Split(name, split, tuple(images), section.shift is not None))
    _report_training(source, name, files, splits, report)
    return splits


def _part(
    part: Source, expected: int | None, report: Report, progress: Callable[[int, int], None] | None
) -> list[LabelledImage]:
    """The images of one folder, their faults reported."""
    try:
        found = read_and_report(part, report, progress)
    except InputError as error:
        report(_fault(error))
        return []
    for image, facts in found:
        _report_unusual(image.path, facts, report)
    where = str(part.listed or part.images)
    if not found:
        report(Fault(Level.ERROR, where, "holds no image that can be read"))
    elif expected is not None and len(found) != expected:
        report(Fault(Level.WARNING, where, f"{len(found)} images, the series expects {expected}"))
    _report_circles(part.images, report)
    _report_line_ends(part, [image for image, _ in found], report)
    return [image for image, _ in found]


def _report_training(
    source: SeriesFile, name: str, files: DomainFiles, splits: Sequence[_Split], report: Report
) -> None:
    """What a task would refuse in its training images."""
    for task in source.series.tasks:
        if task.domain != name:
            continue
        where = f"{source.path}: domains.{name}"
        if not files.train:
            report(Fault(Level.ERROR, where, "key 'train' is missing, a task trains there"))
        for label in task.classes:
            if label not in files.classes:
                report(Fault(Level.ERROR, where, f"class '{label}' of the task is not named there"))
        drop = source.section.other_labels == "drop"
        for split in splits:
            labels = Counter(label for image in split.images for label in image.labels)
            absent = [label for label in task.classes if not labels[label]]
            if split.split == "train" and len(absent) == len(task.classes):
                report(Fault(Level.ERROR, where, no_box_of(task.classes)))
            else:
                for label in absent:
                    report(Fault(Level.WARNING, where, f"no box of class '{label}' in the {split.split} images"))
            if split.split == "train" and not drop:
                for image in split.images:
                    for label, line in zip(image.labels, image.lines):
                        if label not in task.classes:
                            report(Fault(Level.ERROR, line, not_of_the_task(label, task.classes)))


def _report_unusual(path: Path, facts: PictureFacts, report: Report) -> None:
    """What is read rightly here and trips other tools."""
    if facts.mode not in ("RGB", "L", "CMYK", "P", "1", "LA", "RGBA", "PA"):
        report(Fault(Level.NOTE, str(path), "16 bits or more per channel; trained with as 8"))
    elif facts.mode in ("L", "1", "LA"):
        report(Fault(Level.NOTE, str(path), "a grey picture; trained with as three equal channels"))
    elif facts.mode == "CMYK":
        report(Fault(Level.NOTE, str(path), "a picture in printing colours (CMYK); trained with as RGB"))
    if facts.orientation != 1:
        what = f"turned by its EXIF orientation {facts.orientation}; its boxes must fit the picture as it is shown"
        report(Fault(Level.NOTE, str(path), what))
    if not str(path).isascii() or " " in str(path):
        report(Fault(Level.NOTE, str(path), "spaces or letters beyond ASCII in the path; read as they are"))


def _report_circles(folder: Path, report: Report) -> None:
    """Links to a folder above; a tool that searches sub-folders does not come to an end there."""
    here = folder.resolve()
    for name in sorted(folder_names(folder, "image")):
        path = folder / name
        if path.is_symlink() and path.is_dir() and here.is_relative_to(path.resolve()):
            report(Fault(Level.NOTE, str(path), "a link that leads in a circle; sub-folders are not searched"))


def _report_line_ends(part: Source, images: Iterable[LabelledImage], report: Report) -> None:
    files = [part.listed] if part.listed else []
    if part.format != "coco":
        suffix = ".xml" if part.format == "voc" else ".txt"
        files += [part.labels / f"{image.path.stem}{suffix}" for image in images]
    for file in files:
        if file.is_file():
            before, found, _ = file.read_bytes().partition(b"\r\n")
            if found:
                line = before.count(b"\n") + 1
                report(Fault(Level.NOTE, f"{file}, line {line}", "Windows line ends; read as they are"))


def _report_same_pictures(splits: Sequence[_Split], report: Report) -> None:
    """Equal files in two splits or two domains; a domain whose images are drawn anew may share them."""
    by_size: dict[int, list[tuple[_Split, Path]]] = {}
    for split in splits:
        for image in split.images:
            by_size.setdefault(image.path.stat().st_size, []).append((split, image.path))
    first: dict[str, tuple[_Split, Path]] = {}
    for group in by_size.values():
        for split, path in group if len(group) > 1 else ():
            known, other = first.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), (split, path))
            if known.domain != split.domain and (known.drawn_anew or split.drawn_anew):
                continue
            if known is not split or other != path:
                what = f"in {split.title}, is the same picture as {other} in {known.title}"
                report(Fault(Level.WARNING, str(path), what))


def _counts(split: _Split) -> SplitCounts:
    boxes: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for image in split.images:
        for label, flag in zip(image.labels, image.ignored.tolist()):
            (ignored if flag else boxes)[label] += 1
    return SplitCounts(split.domain, split.split, len(split.images), boxes, ignored)


def _fault(error: InputError) -> Fault:
    where, _, what = str(error).partition(": ")
    return Fault(Level.ERROR, where, what)
