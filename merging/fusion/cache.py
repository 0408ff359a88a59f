"""Fine-tuned models kept between runs, under a name that says what they were trained from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from merging.safetensors_writer import in_place


def cached_weights(
    folder: Path, recipe: Mapping[str, Any], make: Callable[[], tuple[Mapping[str, Tensor], dict[str, Any]]]
) -> tuple[Path, dict[str, Any], bool]:
    """Weights made once for a recipe.

    Args:
        folder: of the cache; created.
        recipe: everything that decides the weights, JSON-serialisable.
        make: gives the weights and what is to be told about them, JSON-serialisable.

    Returns:
        The safetensors file, what ``make`` told, and whether the weights were there already.

    Raises:
        OSError: when the file cannot be written.
    """
    text = json.dumps(recipe, sort_keys=True)
    path = folder / f"{recipe['name']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    told = _told(path, text)
    if told is not None:
        return path, told, True
    folder.mkdir(parents=True, exist_ok=True)
    weights, told = make()
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in weights.items()}
    with in_place(path, single=True, overwrite=True) as partial:
        target = partial / path.name
        save_file(tensors, target, metadata={"format": "pt", "recipe": text, "told": json.dumps(told)})
        with open(target, "rb+") as stream:
            os.fsync(stream.fileno())
    return path, told, False


def load_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a cached file."""
    return load_file(path)


def _told(path: Path, recipe: str) -> dict[str, Any] | None:
    """What a cached file tells, or ``None`` where there is none for this recipe; a damaged one is made again."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
    except (SafetensorError, OSError):
        return None
    return json.loads(metadata["told"]) if metadata.get("recipe") == recipe else None
