"""Samples from disk: image folders, and tables of texts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merging.fusion.config import DataSettings, FusionSettings, TaskSettings
from merging.fusion.problem import Samples

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
Row = dict[str, Any]


def task_classes(settings: FusionSettings, task: TaskSettings) -> tuple[str, ...]:
    """The classes of a task: those of the configuration, or the sorted folders of its test set.

    Raises:
        FileNotFoundError: when there is no such folder.
    """
    if task.classes != "folders":
        return tuple(task.classes)
    path = settings.path(task.test.path)
    if not path.is_dir():
        raise FileNotFoundError(f"task '{task.name}': {path}: no such folder")
    return tuple(sorted(found.name for found in path.iterdir() if found.is_dir()))


def class_words(task: TaskSettings, classes: Sequence[str]) -> tuple[str, ...]:
    """What people call the classes.

    Raises:
        ValueError: when there are not as many class names as classes.
    """
    names = task.class_names or tuple(name.replace("_", " ") for name in classes)
    if len(names) != len(classes):
        raise ValueError(f"task '{task.name}': {len(names)} class_names for {len(classes)} classes")
    return names


def task_samples(
    settings: FusionSettings, task: TaskSettings, collate: Callable[[list[Any]], Any]
) -> tuple[Samples, Samples]:
    """The unlabelled and the test set of a task.

    Args:
        settings: gives root and seed.
        task: which.
        collate: makes a batch of items: paths of images, or texts (pairs of texts).

    Returns:
        Unlabelled set, test set.

    Raises:
        ValueError: when a table or folder is not as the configuration says; file and line are named.
        FileNotFoundError: when a path does not exist.
    """
    made = []
    for data, labelled in ((task.unlabelled, False), (task.test, True)):
        read = _folder if data.format == "folder" else _table
        items, labels = read(data, settings.path(data.path), task, task_classes(settings, task) if labelled else ())
        items, labels = _limited(items, labels, data.limit, settings.seed)
        made.append(Samples(items, labels if labelled else None, collate, str(settings.path(data.path))))
    return made[0], made[1]


def _folder(data: DataSettings, path: Path, task: TaskSettings, classes: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """One folder per class; without classes, all images below the folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"task '{task.name}': {path}: no such folder")
    if not classes:
        return _images(path), []
    folders = {name: path / name for name in classes}
    missing = [name for name, folder in folders.items() if not folder.is_dir()]
    if missing:
        raise ValueError(f"task '{task.name}': {path} has no folder '{missing[0]}'; expected one per class")
    extra = [found.name for found in sorted(path.iterdir()) if found.is_dir() and found.name not in folders]
    if extra:
        raise ValueError(f"task '{task.name}': {path / extra[0]} is no class of the task")
    pairs = [(image, label) for label, folder in enumerate(folders.values()) for image in _images(folder)]
    return [image for image, _ in pairs], [label for _, label in pairs]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)


def _table(data: DataSettings, path: Path, task: TaskSettings, classes: Sequence[str]) -> tuple[list[Any], list[Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"task '{task.name}': {path}: no such file")
    items: list[Any] = []
    labels: list[Any] = []
    for number, row in _rows(path, data):
        where = f"task '{task.name}': {path}, line {number}"
        text = _cell(row, data.text, where)
        items.append(text if data.text_pair is None else (text, _cell(row, data.text_pair, where)))
        if classes:
            if data.label is None:
                raise ValueError(f"task '{task.name}': the test set needs a label column")
            value = _cell(row, data.label, where)
            labels.append(_real(value, where) if task.metric == "spearman" else _class_index(value, classes, where))
    return items, labels


def _rows(path: Path, data: DataSettings) -> Iterator[tuple[int, Row]]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        try:
            if data.format == "jsonl":
                yield from _json_rows(path, stream)
                return
            # In a TSV a quotation mark is a character like any other.
            dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if data.format == "tsv" else {}
            reader = csv.DictReader(stream, fieldnames=data.columns, **dialect)
            for row in reader:
                if None in row or None in row.values():
                    wanted = len(reader.fieldnames or ())
                    raise ValueError(f"{path}, line {reader.line_num}: expected {wanted} columns")
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a UTF-8 text file ({error.reason})") from None
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _json_rows(path: Path, stream: Any) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
        yield number, row


def _cell(row: Row, column: str, where: str) -> str:
    if column not in row:
        raise ValueError(f"{where}: no column '{column}'; found: {', '.join(map(str, row))}")
    return str(row[column])


def _real(value: str, where: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{where}: label '{value}': expected a number") from None


def _class_index(value: str, classes: Sequence[str], where: str) -> int:
    """The place of a class that is written by its name, or by its number where no class has that name."""
    if value in classes:
        return list(classes).index(value)
    if value.isdigit() and int(value) < len(classes):
        return int(value)
    raise ValueError(f"{where}: label '{value}' is no class of the task ({', '.join(classes[:6])})")


def _limited(items: list[Any], labels: list[int], limit: int | None, seed: int) -> tuple[list[Any], list[int]]:
    if limit is None or len(items) <= limit:
        return items, labels
    chosen = sorted(np.random.default_rng(seed).permutation(len(items))[:limit].tolist())
    return [items[place] for place in chosen], [labels[place] for place in chosen] if labels else []
