"""The images of one domain of a series, train and test, from whatever layout they lie in."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from duet.datasets.domains import SHIFTS
from duet.datasets.glyphs import GlyphSettings
from duet.datasets.images import LabelledImage
from duet.datasets.index import read_source
from duet.datasets.scene_folder import SceneSource, write_scenes
from duet.datasets.scenes import SceneSettings
from duet.datasets.series_file import DomainFiles, DomainSection, SeriesFile
from duet.datasets.shifted import Shift, draw_shifted, shifted_images
from duet.datasets.source import Source
from duet.datasets.yolo import read_class_names
from duet.disk import move_into_place
from duet.errors import InputError, nearest
from duet.paths import cache_folder
from duet.state import digest_of

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Domain:
    """One domain of a series.

    Each split is read when it is asked for: a later task never opens an earlier domain's training images.

    Args:
        name: name of the domain.
        train: how to read the training split, without the boxes that are not trained with: crowds, and those marked
            difficult unless the series says otherwise.
        test: how to read the test split.
    """

    name: str
    train: Callable[[], tuple[LabelledImage, ...]]
    test: Callable[[], tuple[LabelledImage, ...]]


def open_domains(source: SeriesFile, progress: Progress | None = None) -> dict[str, Domain]:
    """The domains of a series by name; scenes and shifted domains are written on first use.

    Args:
        source: the series file.
        progress: called with what is written, how much is done, and how much there is.

    Raises:
        InputError: when a folder or file is missing or a class of a task is not among a domain's names.
    """
    if source.generated:
        return _generated_domains(source, progress)
    source.refuse_without_root()
    return {name: _folder_domain(name, source, progress) for name in source.series.test_domains}


def content_digest(images: Sequence[LabelledImage]) -> str:
    """The sha256 over the image files and their labels, in order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.path.read_bytes())
        digest.update(repr((image.labels, image.boxes_xyxy.round(3).tolist())).encode())
        if image.ignored.any():
            digest.update(repr((image.difficult.tolist(), image.crowd.tolist())).encode())
    return digest.hexdigest()


def _generated_domains(source: SeriesFile, progress: Progress | None) -> dict[str, Domain]:
    settings = _scene_settings(source)
    for task in source.series.tasks:
        if task.domain not in settings.domains:
            raise InputError(f"{source.path}: domain '{task.domain}' is not among {', '.join(settings.domains)}")
        unknown = [name for name in task.classes if name not in settings.class_names]
        if unknown:
            raise InputError(f"{source.path}: class '{unknown[0]}' is not among {', '.join(settings.class_names)}")
    report = (lambda done, total: progress("write scenes", done, total)) if progress else None
    root = write_scenes(cache_folder() / "scenes", settings, report)
    return {name: _scene_domain(name, root / name) for name in source.series.domains}


def _scene_settings(source: SeriesFile) -> SceneSource:
    scenes, glyphs = source.section.scenes, source.section.glyphs
    try:
        if glyphs is not None:
            return GlyphSettings(**glyphs.model_dump())
        return SceneSettings(**scenes.model_dump(), domains=source.series.domains)
    except ValueError as error:
        raise InputError(f"{source.path}: {error}") from error


def _scene_domain(name: str, folder: Path) -> Domain:
    names = read_class_names(folder / "classes.txt")
    train, test = (
        Source("yolo", folder / split / "images", folder / split / "labels", names) for split in ("train", "test")
    )
    return Domain(name, lambda: read_source(train), lambda: read_source(test))


def _folder_domain(name: str, source: SeriesFile, progress: Progress | None) -> Domain:
    section, files = source.section.domains[name], source.domain(name)
    if section.shift is not None and section.shift not in SHIFTS:
        raise InputError(f"{source.path}: unknown shift '{section.shift}'" + nearest(section.shift, SHIFTS))
    if name in source.series.domains and not files.train:
        raise InputError(f"{source.path}: domains.{name}: key 'train' is missing, a task trains there")
    _refuse_unnamed_classes(name, source, files)

    def read(parts: Sequence[Source]) -> tuple[LabelledImage, ...]:
        report = (lambda done, total: progress(f"index {name}", done, total)) if progress else None
        images = tuple(image for part in parts for image in read_source(part, report))
        return images if section.shift is None else _shifted(images, name, section, progress)

    def train() -> tuple[LabelledImage, ...]:
        if not files.train:
            raise InputError(f"{source.path}: domains.{name}: key 'train' is missing, the domain is only evaluated")
        left_out = "crowd" if section.difficult == "train" else "ignored"
        return tuple(image.chosen(~getattr(image, left_out)) for image in read(files.train))

    return Domain(name, train, lambda: read(files.test))


def _refuse_unnamed_classes(name: str, source: SeriesFile, files: DomainFiles) -> None:
    for task in source.series.tasks:
        missing = [label for label in task.classes if task.domain == name and label not in files.classes]
        if missing:
            classes = source.section.domains[name].classes
            where = source.root / classes if isinstance(classes, str) else f"{source.path}: domains.{name}"
            raise InputError(f"{where}: class '{missing[0]}' of the task is not named there")


def _shifted(
    images: tuple[LabelledImage, ...], name: str, section: DomainSection, progress: Progress | None
) -> tuple[LabelledImage, ...]:
    """The same images drawn in a domain shift, kept in the cache."""
    shift = Shift(section.shift, section.shift_seed, section.shift_strength)
    found = [(str(image.path.resolve()), image.path.stat()) for image in images]
    key = digest_of([astuple(shift), [(path, facts.st_size, facts.st_mtime_ns) for path, facts in found]])
    folder = cache_folder() / "domains" / f"{name}-{shift.name}-{key[:12]}"
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        report = (lambda done, total: progress(f"draw {name}: {shift.name}", done, total)) if progress else None
        draw_shifted(images, shift, part, report)
        move_into_place(part, folder, Path.is_dir)
    return shifted_images(images, folder)
