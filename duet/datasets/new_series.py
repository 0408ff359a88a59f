"""Write a series file from folders of data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from duet.datasets.dataset_folder import DatasetFolder, open_folder
from duet.datasets.domain import open_domains
from duet.datasets.series_file import SeriesFile
from duet.datasets.source import Source
from duet.errors import InputError, nearest
from duet.state import write_atomic

_TRAIN, _TEST = ("trainval", "train"), ("test", "val")


@dataclass(frozen=True)
class TaskChoice:
    """A task as the user names it.

    Args:
        dataset: the folder of its domain.
        classes: what is learned there.
    """

    dataset: DatasetFolder
    classes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> TaskChoice:
        """Read ``FOLDER:class,class``.

        Raises:
            InputError: when a part is missing, the folder is no data set, or a class is not in it.
        """
        place, _, listed = text.rpartition(":")
        classes = tuple(name.strip() for name in listed.split(",") if name.strip())
        if not place or not classes:
            raise InputError(f"--task {text}: expected FOLDER:class,class")
        dataset = open_folder(Path(place).expanduser())
        for name in classes:
            if name not in dataset.names:
                raise InputError(f"--task {text}: class '{name}' is not in {place}" + nearest(name, dataset.names))
        return cls(dataset, classes)


def write_series(path: Path, name: str, tasks: Sequence[TaskChoice]) -> SeriesFile:
    """Write a series file and see that it opens.

    Args:
        path: the YAML file; must not exist.
        name: name of the series.
        tasks: in the order in which they are learned.

    Raises:
        InputError: when the file is there, a data set has no train and test split, or the tasks are no series.
    """
    if path.exists():
        raise InputError(f"{path}: there is such a file; choose another name")
    domains = _domain_names(tasks)
    values = {
        "name": name,
        "other_labels": "drop",
        "domains": {domain: _domain(task.dataset, path.parent) for domain, task in zip(domains, tasks)},
        "tasks": [{"domain": domain, "classes": list(task.classes)} for domain, task in zip(domains, tasks)],
    }

    def write(temporary: Path) -> None:
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
        temporary.write_text(text, encoding="utf-8")
        try:
            open_domains(SeriesFile(temporary))
        except InputError as error:
            raise InputError(str(error).replace(str(temporary), str(path))) from error

    write_atomic(path, write)
    return SeriesFile(path)


def _domain_names(tasks: Sequence[TaskChoice]) -> list[str]:
    """The folders' names; those with the same one get a number."""
    names: list[str] = []
    for task in tasks:
        place = task.dataset.path
        name = (place if place.is_dir() else place.parent).resolve().name
        same = sum(known.partition("~")[0] == name for known in names)
        names.append(f"{name}~{same + 1}" if same else name)
    return names


def _domain(dataset: DatasetFolder, folder: Path) -> dict[str, Any]:
    train = next((dataset.splits[name] for name in _TRAIN if name in dataset.splits), None)
    test = next((dataset.splits[name] for name in _TEST if name in dataset.splits), None)
    if train is None or test is None:
        found = ", ".join(dataset.splits)
        raise InputError(
            f"{dataset.path}: expected a train and a test split, found {found}; `duet data split` makes them"
        )
    return {
        "format": dataset.format,
        "classes": list(dataset.names),
        "train": _split(train, folder),
        "test": _split(test, folder),
    }


def _split(source: Source, folder: Path) -> dict[str, str]:
    places = {"images": source.images, "labels": source.labels, "list": source.listed}
    return {key: _relative(place, folder) for key, place in places.items() if place is not None}


def _relative(place: Path, folder: Path) -> str:
    """The path from the series file where the data lie below it; else the whole path."""
    place, folder = place.resolve(), folder.resolve()
    return os.path.relpath(place, folder) if place.is_relative_to(folder) else str(place)
