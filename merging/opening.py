"""From what a caller names — a mapping, a source or a path — to a source of tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from merging.result import State
from merging.safetensors_reader import SafetensorsSource, is_safetensors
from merging.sources import TensorSource, as_source
from merging.torch_checkpoint import SUFFIXES, open_torch_checkpoint

Model = State | TensorSource | str | Path


def open_model(model: Model, name: str) -> TensorSource:
    """Open one model.

    Args:
        model: a mapping name → tensor; a source; or a path: ``.safetensors``, ``.safetensors.index.json``, a folder
            that holds one of these, or a state dict saved by torch (``.pt``, ``.pth``, ``.bin``, ``.ckpt``).
        name: what messages call a mapping; a path is called by its path.

    Returns:
        The source of its tensors.

    Raises:
        FileNotFoundError: when a path does not exist.
        ValueError: when a file is damaged or of another kind.
        TypeError: when the model is none of these.
    """
    if not isinstance(model, (str, Path)):
        return as_source(model, name)
    path = Path(model)
    if path.suffix in SUFFIXES and not path.is_dir():
        return open_torch_checkpoint(path)
    if path.exists() and not is_safetensors(path):
        kinds = ", ".join((".safetensors", *SUFFIXES))
        raise ValueError(f"{path}: expected a folder or a file ending in {kinds}")
    return SafetensorsSource(path)


def open_models(models: Sequence[Model], what: str = "model") -> list[TensorSource]:
    """Open several models, called ``model 1``, ``model 2`` and so on unless they are files.

    Raises:
        TypeError: when a single model is given instead of a sequence.
        ValueError: see :func:`open_model`.
        FileNotFoundError: see :func:`open_model`.
    """
    if isinstance(models, (str, Path, Mapping)) or not isinstance(models, Sequence):
        raise TypeError(f"expected a list, one {what} each; got {type(models).__name__}")
    return [open_model(model, f"{what} {number}") for number, model in enumerate(models, 1)]


def open_family(base: Model, models: Sequence[Model]) -> tuple[TensorSource, list[TensorSource]]:
    """Open the base and the models.

    Raises:
        ValueError: when the base and a model are the same file, whose task vector would be zero; see also
            :func:`open_model`.
        TypeError: see :func:`open_models`.
        FileNotFoundError: see :func:`open_model`.
    """
    ancestor, sources = open_model(base, "base"), open_models(models)
    for source in sources:
        for file in source.files:
            if any(os.path.samefile(file, other) for other in ancestor.files):
                raise ValueError(f"{file} is given as base and as model: its task vector would be zero")
    return ancestor, sources
