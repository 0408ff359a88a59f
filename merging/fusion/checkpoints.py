"""Hugging Face checkpoints, opened with one sentence for whatever they lack.

A name is a folder below the configuration's root, or a model of the hub where one is reachable.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from merging.checks import first_line
from merging.fusion.config import FusionSettings, TaskSettings
from merging.fusion.problem import Origin


def open_named(kind: Any, settings: FusionSettings, name: str, **options: Any) -> Any:
    """What ``kind.from_pretrained`` gives: a model, a tokenizer or a processor.

    Args:
        kind: a class of transformers.
        settings: gives the root.
        name: what the configuration calls it.
        options: of ``from_pretrained``.

    Raises:
        ValueError: when neither the root nor the hub has it, or it is damaged or of another kind.
    """
    with opening(settings, name, kind.__name__):
        place = settings.path(name)
        return kind.from_pretrained(str(place) if place.is_dir() else name, **options)


def open_network(kind: Any, settings: FusionSettings, name: str, *, head: bool = True) -> Any:
    """A model in float32.

    Args:
        kind: a class of transformers.
        settings: gives the root.
        name: what the configuration calls it.
        head: whether the checkpoint must have its head too.

    Raises:
        ValueError: when it cannot be opened, or lacks weights, which transformers would draw at random.
    """
    model, report = open_named(kind, settings, name, output_loading_info=True)
    backbone = model.base_model_prefix + "."
    missing = sorted(key for key in report["missing_keys"] if head or key.startswith(backbone))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{name}: has no '{missing[0]}'{more}; expected every tensor of {type(model).__name__}"
            f"{', head included' if head else ''}"
        )
    return model.float()


def check_tokenizer(settings: FusionSettings, tokenizer: Any) -> None:
    """Refuse a pretrained folder without a vocabulary, for which transformers invents an empty one.

    Raises:
        ValueError: naming the folder.
    """
    place = settings.path(str(settings.pretrained))
    if place.is_dir() and tokenizer.vocab_files_names and not _has_vocabulary(place, tokenizer):
        raise ValueError(f"{place}: holds no tokenizer; copy the files of the pretrained model's there")


def check_vocabulary(settings: FusionSettings, task: TaskSettings, tokenizer: Any, kind: Any) -> None:
    """Refuse a task model that brings a tokenizer of another vocabulary: all tasks are read with the pretrained's.

    Args:
        settings: gives the root.
        task: its model's folder is looked into; models of the hub are not.
        tokenizer: the pretrained model's.
        kind: opens the task model's.

    Raises:
        ValueError: naming the task.
    """
    if not _has_vocabulary(settings.path(task.model), tokenizer):
        return
    if open_named(kind, settings, task.model).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"task '{task.name}': the tokenizer of {task.model} has another vocabulary than {settings.pretrained}'s"
        )


def origin_of(settings: FusionSettings, name: str) -> Origin:
    """Where a model comes from, for the provenance."""
    return Origin.at(name, settings.path(name))


@contextmanager
def opening(settings: FusionSettings, name: str, kind: str) -> Iterator[None]:
    """Make one sentence of what a library says while it opens a checkpoint.

    Args:
        settings: gives the root.
        name: what the configuration calls the checkpoint.
        kind: what it was to be, for the message.

    Raises:
        ValueError: naming the checkpoint and the first line of what the library said.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        place = settings.path(name)
        where = str(place) if place.is_dir() else f"{name} (no folder {place}, and the hub did not give it)"
        raise ValueError(f"{where}: cannot be opened as {kind}: {first_line(error)}") from None


def _has_vocabulary(folder: Path, tokenizer: Any) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", *tokenizer.vocab_files_names.values()))
