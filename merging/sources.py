"""Where tensors are read from: one protocol for models in memory and models on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSpec:
    """Stored dtype and shape of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class TensorSource(Protocol):
    """A model whose tensors are read slice by slice.

    Attributes:
        name: what messages call it: ``base``, ``model 2`` or a path.
        specs: key → dtype and shape, in the model's own order.
        tied: key → the earlier key whose storage it shares.
        files: the files it was read from; empty in memory.
    """

    name: str
    specs: Mapping[str, TensorSpec]
    tied: Mapping[str, str]
    files: tuple[Path, ...]

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Scalars ``[start, stop)`` of the flattened tensor, ``(stop - start,)``, stored dtype, on the CPU.

        May be a view of the model: whoever reads must not write to it.
        """
        ...


class StateSource:
    """A mapping of tensors in memory.

    Args:
        state: name → tensor, on any device; never changed.
        name: what messages call it.
        files: the files the mapping was read from, hashed for the provenance of a merge.

    Raises:
        TypeError: when the mapping holds something that is no dense tensor, or a complex tensor.
    """

    def __init__(self, state: Mapping[str, Tensor], name: str, files: tuple[Path, ...] = ()) -> None:
        _check_tensors(state, name)
        self.state = state
        self.name = name
        self.files = files
        self.specs = {key: TensorSpec(tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()}
        self.tied = _tied(state)
        self._flat: dict[str, Tensor] = {}

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """See :class:`TensorSource`."""
        flat = self._flat.get(key)
        if flat is None:
            # Kept for the next block: a tensor that is not contiguous or not on the CPU is copied once, not per block.
            flat = self.state[key].detach().to("cpu").reshape(-1)
            self._flat = {key: flat}
        return flat[start:stop]


def as_source(model: Mapping[str, Tensor] | TensorSource, name: str) -> TensorSource:
    """A mapping as a source; a source as it is.

    Raises:
        TypeError: when it is neither.
    """
    if isinstance(model, Mapping):
        return StateSource(model, name)
    if isinstance(model, (str, Path)) or not hasattr(model, "specs"):
        raise TypeError(f"{name}: expected a mapping of tensors, got {type(model).__name__}")
    return model


def _check_tensors(state: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor under '{key}', got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = "complex" if tensor.is_complex() else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise TypeError(f"{name}: '{key}' is {kind}; only dense real tensors can be merged")


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[tuple, str] = {}
    tied = {}
    for key, tensor in state.items():
        if tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        place = (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if place in first:
            tied[key] = first[place]
        else:
            first[place] = key
    return tied
