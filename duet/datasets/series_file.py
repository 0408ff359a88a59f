"""Series files: which domains there are, where their images lie, and which classes are learned in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from duet.config import Section, read_yaml, validate
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
    """The images and labels of one split in the YOLO layout; paths are relative to the series' root."""

    images: str
    labels: str
    list: Annotated[str | None, Field(description="file that names the images of the split; null takes all")] = None


class DomainSection(Section):
    """A domain: its class names, its splits, and the domain shift its images are drawn anew in, if any."""

    classes: str
    train: SplitSection
    test: SplitSection
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
    tasks: tuple[TaskSection, ...]


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
        try:
            self.series = Series(self.section.name, tuple(_task(task) for task in self.section.tasks))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        self.root = root or (path.parent / self.section.root)
        self._check_sources(root)

    @property
    def generated(self) -> bool:
        """Whether the images are generated."""
        return self.section.scenes is not None or self.section.glyphs is not None

    def identity(self) -> dict[str, Any]:
        """What decides the data and the order of learning, without places on this machine."""
        left_out = {"root", "train"}
        if self.section.glyphs is None:
            left_out.add("glyphs")  # runs and references of other series keep the identity they had before it
        return self.section.model_dump(mode="json", exclude=left_out)

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
