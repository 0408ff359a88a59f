"""Ultralytics' architecture descriptions, checked before they are built: they could run code.

``parse_model`` evaluates the text under ``activation`` and calls whatever its module names as a layer, so that a YAML
file or the header of a stored detector could start any program. Here a layer is a layer and an activation is one.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from typing import Any

import torchvision.ops
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules.block import TorchVision

from duet.errors import InputError

_FETCHING = (TorchVision,)  # layers that download


def checked_layout(layout: Any) -> dict[str, Any]:
    """A copy of an architecture description that runs no code when Ultralytics builds it.

    Args:
        layout: the mapping of a model YAML.

    Raises:
        InputError: when it is no such mapping, or names what is no layer or activation.
    """
    if not isinstance(layout, Mapping):
        raise InputError(f"expected a mapping with backbone and head, found {type(layout).__name__}")
    if layout.get("activation") is not None:
        _refuse_other_activation(layout["activation"])
    for part in ("backbone", "head"):
        rows = layout.get(part)
        if not isinstance(rows, list):
            raise InputError(f"key '{part}': expected a list of layers, found {type(rows).__name__}")
        for row in rows:
            if not isinstance(row, list | tuple) or len(row) != 4 or not isinstance(row[2], str):
                raise InputError(f"key '{part}': expected [from, repeats, layer, arguments], found {row!r}")
            if not _is_layer(row[2]):
                raise InputError(f"key '{part}': {row[2]!r} is no layer of torch or Ultralytics, and is not called")
    return copy.deepcopy(dict(layout))


def _is_layer(name: str) -> bool:
    """Whether Ultralytics would find a layer under this name, and nothing else."""
    if name.startswith("torchvision.ops."):
        found = getattr(torchvision.ops, name.removeprefix("torchvision.ops."), None)
    elif name.startswith("nn."):
        found = getattr(nn, name.removeprefix("nn."), None)
    else:
        found = vars(tasks).get(name)
    is_layer = isinstance(found, type) and issubclass(found, nn.Module)
    return is_layer and not issubclass(found, (tasks.BaseModel, *_FETCHING))


def _refuse_other_activation(text: Any) -> None:
    """Accept ``nn.SiLU()`` and ``torch.nn.LeakyReLU(0.1)``: a class of torch.nn and plain values."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError
        owner, _, name = ast.unparse(call.func).rpartition(".")
        for value in [*call.args, *(keyword.value for keyword in call.keywords)]:
            ast.literal_eval(value)
        found = getattr(nn, name, None) if owner in ("nn", "torch.nn") else None
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"key 'activation' is {text!r}: expected a layer of torch such as nn.SiLU()") from error
