"""A grid of runs from one YAML file: methods × seeds × detectors × series (docs/comparing.md shows one).

A line of ``methods`` is the name of a method, or a mapping with a ``label`` and a ``method`` with settings of its own.
With ``mergers``, every method that trains one task after another is run with each of them. ``train`` and ``evaluation``
hold for every cell, as in a run's configuration.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from duet.config import RunConfig, Section, overlay, validate
from duet.documents import read_yaml
from duet.errors import InputError, nearest
from duet.paths import data_folder
from duet.resolve import resolve_config
from merging.checks import folder_name

OWN_MERGER = "own"


def _several(value: Any) -> Any:
    """A list, each item once; a single text stands for a list of it."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list such as [{value!r}], found {value!r}")
    twice = next((item for place, item in enumerate(value) if item in value[:place]), None)
    if twice is not None:
        raise ValueError(f"names {twice!r} twice")
    return tuple(value)


class MethodEntry(Section):
    """One line of the comparison: a method under a name of its own."""

    label: Annotated[str, Field(min_length=1)]
    method: dict[str, Any]
    train: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)


class Grid(Section):
    """What is compared."""

    name: Annotated[str, AfterValidator(folder_name)] = "comparison"
    series: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)] = ("demo",)
    root: str | None = None
    detectors: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)] = ("yolo11n",)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_several), Field(min_length=1)] = (0,)
    methods: Annotated[tuple[MethodEntry, ...], Field(min_length=1)]
    mergers: Annotated[
        tuple[str, ...],
        BeforeValidator(_several),
        Field(min_length=1, description="`own` is the method's own"),
    ] = (OWN_MERGER,)
    loggers: Annotated[
        tuple[str, ...], BeforeValidator(_several), Field(description="as in a run's configuration")
    ] = ()
    train: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        series, detector, label, seed: its place; ``label`` names the method.
        config: the resolved configuration.
    """

    series: str
    detector: str
    label: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """A path below the grid's folder, and the cell's name: SERIES/DETECTOR/LABEL/seed-N."""
        return "/".join((*map(_part, (self.series, self.detector, self.label)), f"seed-{self.seed}"))

    @property
    def shared(self) -> frozenset[str]:
        """Names of the trainings that it may share with others: the joint reference, the first and the later stages."""
        found = set()
        if self.config.method.joint or self.config.evaluation.reference != "none":
            found.add(f"reference {self._place}")
        if not self.config.method.joint:
            found.add(f"first stage {self._place}")
        if self.later_training is not None:
            found.add(self.later_training)
        return frozenset(found)

    @property
    def later_training(self) -> str | None:
        """Name of how its later stages train; cells that agree in it train alike from one model. None without one."""
        method = self.config.method
        if method.joint or method.start == "pretrained":
            return None
        return f"later stages {self._place} {json.dumps(method.of_training(), sort_keys=True)}"

    @property
    def _place(self) -> str:
        return f"{self.series} {self.detector} {self.seed} {self.config.train.model_dump_json()}"


def cells_that_train_alike(cells: Sequence[Cell]) -> frozenset[str]:
    """Names of the cells whose later stages another cell trains too, such as a method with several mergers."""
    counts = Counter(cell.later_training for cell in cells)
    return frozenset(cell.name for cell in cells if cell.later_training is not None and counts[cell.later_training] > 1)


def read_grid(name: str, changes: Mapping[str, Any] | None = None) -> Grid:
    """The grid of a shipped name or a file.

    Args:
        name: such as ``demo``, or a YAML file.
        changes: keys that replace the file's; ``train`` and ``evaluation`` are laid over the file's.

    Raises:
        InputError: one sentence with the file, the key and what was expected.
    """
    path = _grid_file(name)
    values = overlay({"name": path.stem, **read_yaml(path)}, changes or {})
    methods = values.get("methods")
    if isinstance(methods, list):
        values["methods"] = [_entry(item, f"{path}: key 'methods.{place}'") for place, item in enumerate(methods)]
    grid = validate(Grid, values, str(path))
    return grid.model_copy(update={"series": tuple(_beside(path, item) for item in grid.series)})


def cells_of(grid: Grid, device: str | None = None) -> list[Cell]:
    """Every run of the grid, joint training first, then method by method; configurations are resolved and checked.

    Args:
        grid: the grid.
        device: where each run trains; None leaves it to the configuration. A run on CPUs takes one thread unless
            ``train.threads`` says otherwise.

    Raises:
        InputError: when a configuration is wrong, or two cells have the same place.
    """
    cells: list[Cell] = []
    for series in grid.series:
        for detector in grid.detectors:
            for entry in _with_mergers(grid):
                for seed in grid.seeds:
                    config = _resolved(grid, series, detector, entry, seed, device)
                    cells.append(Cell(Path(series).stem, Path(detector).stem, entry.label, seed, config))
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"comparison '{grid.name}': two cells are called '{twice}'; give each method its own label")
    return sorted(cells, key=lambda cell: not cell.config.method.joint)  # stable: the grid's order otherwise


def shipped_grids() -> list[str]:
    """Names of the grids that come with the package."""
    return sorted(path.stem for path in data_folder("comparisons").glob("*.yaml"))


def _grid_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = data_folder("comparisons") / f"{name}.yaml"
    if "/" in name or "\\" in name or not shipped.is_file():
        raise InputError(f"{name}: no such file, and no shipped comparison" + nearest(name, shipped_grids()))
    return shipped


def _entry(item: Any, where: str) -> dict[str, Any]:
    """A line of ``methods`` in its long form."""
    if isinstance(item, str):
        return {"label": item, "method": {"name": item}}
    if not isinstance(item, Mapping):
        raise InputError(f"{where} is {item!r}: expected a method's name, or a mapping with label and method")
    method = item.get("method")
    if isinstance(method, str):
        method = {"name": method}
    if not (isinstance(method, Mapping) and isinstance(method.get("name"), str)):
        raise InputError(f"{where}: key 'method' is {item.get('method')!r}: expected a name or a mapping with one")
    return {"label": method["name"], **item, "method": dict(method)}


def _with_mergers(grid: Grid) -> list[MethodEntry]:
    """The methods, each with every merger; what trains no task after another has nothing to merge."""
    from duet.methods import method_settings

    entries = []
    for entry in grid.methods:
        settings = method_settings(entry.method["name"])
        merges = not settings.joint and {**settings.model_dump(), **entry.method}["start"] == "previous"
        for merger in dict.fromkeys(grid.mergers if merges else (OWN_MERGER,)):
            if merger == OWN_MERGER:
                entries.append(entry)
            else:
                changed = {"label": f"{entry.label}+{merger}", "method": {**entry.method, "merge": {"name": merger}}}
                entries.append(entry.model_copy(update=changed))
    return entries


def _resolved(grid: Grid, series: str, detector: str, entry: MethodEntry, seed: int, device: str | None) -> RunConfig:
    options = {"series": series, "detector": detector, "seed": seed, "method": entry.method["name"]}
    if grid.root is not None:
        options["root"] = grid.root
    train = overlay(grid.train, entry.train)
    if device is not None:
        train["device"] = device
    if str(train.get("device", "cpu")) == "cpu":
        train = {"threads": 1, **train}
    values = {"method": entry.method, "train": train, "evaluation": overlay(grid.evaluation, entry.evaluation)}
    if grid.loggers:
        values["loggers"] = list(grid.loggers)
    try:
        config = resolve_config(None, options, values)
        if config.train.process_count > 1:
            raise InputError(
                "key 'train': several processes for one run; a comparison has several runs at a time instead"
            )
        return config
    except InputError as error:
        raise InputError(f"comparison '{grid.name}', method '{entry.label}': {error}") from error


def _beside(path: Path, series: str) -> str:
    """A series file that is named relative to the grid's file."""
    beside = path.parent / series
    return str(beside) if series.endswith((".yaml", ".yml")) and beside.is_file() else series


def _part(name: str) -> str:
    """A name as one part of a path, readable and safe."""
    kept = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    return kept or "unnamed"
