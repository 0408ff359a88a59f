"""Series files: which domains there are, where their images lie, and which classes are learned in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from duet.config import Section, validate
from duet.datasets.source import Format, Source
from duet.datasets.yolo import checked_names, read_class_names, read_data_yaml
from duet.documents import read_yaml
from duet.errors import InputError, nearest
from duet.paths import data_folder
from duet.series import Role, RoleSlice, Series, Slice, Task


class ScenesSection(Section):
    """The embedded scenes; they have the domains of the tasks."""

    seed: int = 0
    train_scenes: Annotated[int, Field(ge=1)] = 300
    test_scenes: Annotated[int, Field(ge=1)] = 150
    train_digits: tuple[int, int] = (0, 1200)
    test_digits: tuple[int, int] = (1200, 1797)


class GlyphsSection(Section):
    """Generated scenes of letters, all in the one domain ``glyphs``; each is drawn in one of the domain shifts."""

    seed: int = 0
    train_scenes: Annotated[int, Field(ge=1)] = 300
    test_scenes: Annotated[int, Field(ge=1)] = 150
    shifts: tuple[str, ...] = ("clear",)


class SplitSection(Section):
    """The images and labels of one split, or of a part of it; paths are relative to the series' root.

    ``{folder: F, split: S}`` stands for F/JPEGImages, F/Annotations and F/ImageSets/Main/S.txt.
    """

    images: str
    labels: Annotated[str, Field(description="folder of label files; for coco the JSON file")]
    list: Annotated[str | None, Field(description="file that names the images of the split; null takes all")] = None
    count: Annotated[int | None, Field(ge=1, description="how many images the data set's authors give")] = None


def _parts(value: Any) -> Any:
    """One part or several, each written out: ``folder`` and ``split`` stand for the places of the VOC layout."""
    parts = (value,) if isinstance(value, Mapping) else value
    return tuple(_written_out(part) for part in parts) if isinstance(parts, list | tuple) else parts


def _written_out(part: Any) -> Any:
    if not isinstance(part, Mapping) or "folder" not in part:
        return part
    rest = {key: value for key, value in part.items() if key not in ("folder", "split")}
    folder, split = part["folder"], part.get("split")
    listed = {"list": f"{folder}/ImageSets/Main/{split}.txt"} if split else {}
    return {"images": f"{folder}/JPEGImages", "labels": f"{folder}/Annotations", **listed, **rest}


def _file_or_names(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError("expected a file with one class name per line, or a list of names (in quotes if they are numbers)")


Splits = Annotated[tuple[SplitSection, ...], BeforeValidator(_parts), Field(min_length=1)]


class DomainSection(Section):
    """A domain: its format, class names and splits, and the shift its images are drawn anew in, if any.

    Without ``train`` a domain is only evaluated and no task may use it.
    """

    format: Format = "yolo"
    data: Annotated[str | None, Field(description="an Ultralytics data.yaml in place of classes, train and test")] = (
        None
    )
    classes: Annotated[Any, BeforeValidator(_file_or_names)] = None
    rename: Annotated[
        dict[str, str | None], Field(description="names in the labels to names of the series; null leaves a class out")
    ] = Field(default_factory=dict)
    train: Splits | None = None
    test: Splits | None = None
    difficult: Annotated[
        Literal["train", "drop"], Field(description="whether boxes marked difficult are trained with")
    ] = "drop"
    shift: str | None = None
    shift_seed: int = 0
    shift_strength: Annotated[float, Field(ge=0, le=1.5)] = 1.0


class SliceSection(Section):
    """A slice that overrides Table S1's rule."""

    role: Role
    domain: str
    classes: tuple[str, ...]


class TaskSection(Section):
    """One task."""

    domain: str
    classes: tuple[str, ...]
    slices: tuple[SliceSection, ...] | None = None


class SeriesSection(Section):
    """A whole series file."""

    name: str
    root: Annotated[str, Field(description="folder that relative paths start from; relative to this file")] = "."
    scenes: ScenesSection | None = None
    glyphs: GlyphsSection | None = None
    domains: dict[str, DomainSection] = Field(default_factory=dict)
    other_labels: Literal["error", "drop"] = "error"
    unlabelled_images: Literal["keep", "drop"] = "drop"
    train: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)
    tasks: tuple[TaskSection, ...]


@dataclass(frozen=True)
class DomainFiles:
    """Where a domain's images and labels lie.

    Args:
        names: class names as its labels use them.
        train: the parts of its training split; empty for a domain that is only evaluated.
        test: the parts of its test split.
    """

    names: tuple[str, ...]
    train: list[Source]
    test: list[Source]

    @property
    def classes(self) -> tuple[str, ...]:
        """Its class names in the series' words."""
        rename = self.test[0].rename
        named = [rename.get(name, name) for name in (*self.names, *rename)]
        return tuple(dict.fromkeys(name for name in named if name is not None))


class SeriesFile:
    """A series and where its images are.

    Args:
        path: the YAML file.
        root: folder that relative paths of domains start from; None takes the file's own ``root``.

    Raises:
        InputError: naming the file and what is wrong in it.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        self.section: SeriesSection = validate(SeriesSection, read_yaml(path), str(path))
        self.root = root or (path.parent / self.section.root)
        self._given = root is not None
        try:
            self.series = Series(
                self.section.name, tuple(_task(task) for task in self.section.tasks), self._evaluated_only()
            )
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        self._check_sources(root)

    @property
    def generated(self) -> bool:
        """Whether the images are generated."""
        return self.section.scenes is not None or self.section.glyphs is not None

    def refuse_without_root(self) -> None:
        """A shipped series that reads pictures does not know where they lie.

        Raises:
            InputError: naming the option that says it.
        """
        if not self.generated and not self._given and self.path.parent == data_folder("series"):
            raise InputError(f"series '{self.section.name}' reads pictures of yours: --root names their folder")

    def identity(self) -> dict[str, Any]:
        """What decides the data and the order of learning, without places on this machine."""
        return self.section.model_dump(mode="json", exclude={"root", "train", "evaluation"})

    def domain(self, name: str) -> DomainFiles:
        """Where a described domain's images and labels lie.

        Raises:
            InputError: when its class names or its data.yaml cannot be read, or a part of its description is missing.
        """
        section = self.section.domains[name]
        where = f"{self.path}: domains.{name}"
        if section.data is None:
            names = self._class_names(section, where)
            return DomainFiles(names, self._sources(section, section.train, names), self._test(section, names, where))
        if section.classes is not None or section.train or section.test or section.format != "yolo":
            raise InputError(f"{where}: data stands in place of format, classes, train and test, expected only one")
        names, splits = read_data_yaml(self.root / section.data)
        test = splits.get("test") or splits.get("val")
        if test is None:
            raise InputError(f"{self.root / section.data}: names neither a test nor a val split")
        train = [splits["train"]] if "train" in splits else []
        return DomainFiles(
            names, *([replace(source, rename=section.rename) for source in part] for part in (train, [test]))
        )

    def _class_names(self, section: DomainSection, where: str) -> tuple[str, ...]:
        if section.classes is None:
            raise InputError(f"{where}: key 'classes' is missing")
        if isinstance(section.classes, str):
            return read_class_names(self.root / section.classes)
        return checked_names(section.classes, f"{where}.classes")

    def _test(self, section: DomainSection, names: tuple[str, ...], where: str) -> list[Source]:
        if section.test is None:
            raise InputError(f"{where}: key 'test' is missing")
        return self._sources(section, section.test, names)

    def _sources(
        self, section: DomainSection, splits: tuple[SplitSection, ...] | None, names: tuple[str, ...]
    ) -> list[Source]:
        return [
            Source(
                format=section.format,
                images=self.root / part.images,
                labels=self.root / part.labels,
                names=names,
                listed=self.root / part.list if part.list else None,
                rename=section.rename,
            )
            for part in splits or ()
        ]

    def _evaluated_only(self) -> dict[str, tuple[str, ...]]:
        """Domains that no task uses, with their class names."""
        used = {task.domain for task in self.section.tasks}
        return {name: self.domain(name).classes for name in self.section.domains if name not in used}

    def _check_sources(self, root: Path | None) -> None:
        given = [key for key in ("scenes", "glyphs", "domains") if getattr(self.section, key) not in (None, {})]
        if len(given) > 1:
            raise InputError(f"{self.path}: {given[0]} and {given[1]} exclude each other")
        if self.generated and root is not None:
            raise InputError(f"{self.path}: the series is made of generated scenes, --root has no meaning for it")
        if self.generated:
            return
        absent = [name for name in self.series.domains if name not in self.section.domains]
        if absent:
            raise InputError(f"{self.path}: domain '{absent[0]}' is used by a task and not described under domains")


def find_series(name: str, root: Path | None = None) -> SeriesFile:
    """A series by its name among the shipped ones or by the path of a YAML file.

    Raises:
        InputError: naming the nearest shipped series.
    """
    path = Path(name).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise InputError(f"{path}: no such series file")
        return SeriesFile(path, root)
    folder = data_folder("series")
    shipped = {item.stem: item for item in sorted(folder.glob("*.yaml"))}
    if name not in shipped:
        raise InputError(f"unknown series '{name}'" + nearest(name, shipped))
    return SeriesFile(shipped[name], root)


def _task(section: TaskSection) -> Task:
    slices = None
    if section.slices is not None:
        slices = tuple(RoleSlice(item.role, Slice(item.domain, item.classes)) for item in section.slices)
    return Task(section.domain, section.classes, slices)
