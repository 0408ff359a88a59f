"""The images of one domain of a series, train and test, from whatever layout they lie in."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from duet.datasets.domains import SHIFTS, apply_shift
from duet.datasets.glyphs import GlyphSettings
from duet.datasets.images import LabelledImage
from duet.datasets.scene_folder import SceneSource, write_scenes
from duet.datasets.scenes import SceneSettings
from duet.datasets.series_file import DomainSection, SeriesFile, SplitSection
from duet.datasets.yolo import read_class_names, read_split
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
        train: how to read the training split.
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
    domains = {}
    for name in source.series.domains:
        section = source.section.domains[name]
        if section.shift is not None and section.shift not in SHIFTS:
            raise InputError(f"{source.path}: unknown shift '{section.shift}'" + nearest(section.shift, SHIFTS))
        names = read_class_names(source.root / section.classes)
        own = next(task.classes for task in source.series.tasks if task.domain == name)
        missing = [label for label in own if label not in names]
        if missing:
            raise InputError(f"{source.root / section.classes}: class '{missing[0]}' of the task is not named there")
        domains[name] = _folder_domain(name, source.root, section, names, progress)
    return domains


def content_digest(images: Sequence[LabelledImage]) -> str:
    """The sha256 over the image files and their labels, in order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.path.read_bytes())
        digest.update(repr((image.labels, image.boxes_xyxy.round(3).tolist())).encode())
    return digest.hexdigest()


def _generated_domains(source: SeriesFile, progress: Progress | None) -> dict[str, Domain]:
    settings = _scene_settings(source)
    for task in source.series.tasks:
        if task.domain not in settings.domains:
            raise InputError(f"{source.path}: domain '{task.domain}' is not among {', '.join(settings.domains)}")
        unknown = [name for name in task.classes if name not in settings.class_names]
        if unknown:
            raise InputError(f"{source.path}: class '{unknown[0]}' is not among {', '.join(settings.class_names)}")
    report = (lambda done, total: progress("scenes", done, total)) if progress else None
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
    return Domain(
        name,
        lambda: read_split(folder / "train" / "images", folder / "train" / "labels", names),
        lambda: read_split(folder / "test" / "images", folder / "test" / "labels", names),
    )


def _folder_domain(
    name: str, root: Path, section: DomainSection, names: tuple[str, ...], progress: Progress | None
) -> Domain:
    def reader(split: SplitSection) -> Callable[[], tuple[LabelledImage, ...]]:
        listed = root / split.list if split.list else None

        def read() -> tuple[LabelledImage, ...]:
            images = read_split(root / split.images, root / split.labels, names, listed)
            return images if section.shift is None else _shifted(images, name, section, progress)

        return read

    return Domain(name, reader(section.train), reader(section.test))


def _shifted(
    images: tuple[LabelledImage, ...], name: str, section: DomainSection, progress: Progress | None
) -> tuple[LabelledImage, ...]:
    """The same images drawn in a domain shift, kept in the cache as JPEG."""
    settings = (section.shift, section.shift_seed, section.shift_strength)
    key = digest_of([settings, [(str(image.path.resolve()), image.path.stat().st_size) for image in images]])
    folder = cache_folder() / "domains" / f"{name}-{section.shift}-{key[:12]}"
    targets = [folder / f"{image.path.stem}.jpg" for image in images]
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for done, (image, target) in enumerate(zip(images, targets), start=1):
            _draw(image, part / target.name, section)
            if progress:
                progress(f"{name}: {section.shift}", done, len(images))
        part.rename(folder)
    return tuple(
        LabelledImage(target, image.size_hw, image.boxes_xyxy, image.labels, image.lines)
        for image, target in zip(images, targets)
    )


def _draw(image: LabelledImage, target: Path, section: DomainSection) -> None:
    picture = cv2.imread(str(image.path), cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(f"{image.path}: not a readable image")
    seed = int(hashlib.sha256(f"{section.shift_seed}:{image.path.stem}".encode()).hexdigest()[:8], 16)
    drawn = apply_shift(picture, section.shift, seed=seed, strength=section.shift_strength)
    cv2.imwrite(str(target), drawn, [cv2.IMWRITE_JPEG_QUALITY, 95])
