"""Task vectors τ = θ − θ_0 (Ilharco et al., ICLR 2023, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from merging.result import State


def task_vector(base: State, model: State) -> dict[str, Tensor]:
    """The difference of two models, floating-point tensors only.

    Args:
        base: θ_0, name → tensor.
        model: θ, with the same floating-point keys and shapes.

    Returns:
        name → θ − θ_0, in the key order of ``base``; float32, or float64 where either tensor is float64. Integer and
        boolean tensors are left out.

    Raises:
        KeyError: when a floating-point key of one model is missing in the other.
        ValueError: when a shape differs.
    """
    _same_keys(_floating(base), _floating(model), ("base", "model"))
    difference = {}
    for key in _floating(base):
        _same_shape(key, base[key], model[key])
        dtype = arithmetic_dtype(base[key], model[key])
        difference[key] = model[key].detach().to(dtype) - base[key].detach().to(dtype)
    return difference


def apply_task_vector(base: State, vector: State, *, scaling_factor: float = 1.0) -> dict[str, Tensor]:
    """θ_0 + λ τ, cast once to each tensor's dtype in the base.

    Args:
        base: θ_0, name → tensor; tensors the vector does not hold are copied.
        vector: τ, name → tensor.
        scaling_factor: λ.

    Returns:
        A new mapping with the keys of ``base``.

    Raises:
        KeyError: when the vector holds a key that is no floating-point tensor of the base.
        ValueError: when a shape differs.
    """
    unknown = [key for key in vector if key not in base or not base[key].is_floating_point()]
    if unknown:
        raise KeyError(f"the task vector holds '{unknown[0]}', which is no floating-point tensor of the base")
    state = {}
    for key, tensor in base.items():
        if key not in vector:
            state[key] = tensor.detach().clone()
            continue
        _same_shape(key, tensor, vector[key])
        dtype = arithmetic_dtype(tensor, vector[key])
        moved = tensor.detach().to(dtype) + scaling_factor * vector[key].detach().to(dtype)
        state[key] = moved.to(tensor.dtype)
    return state


def arithmetic_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when a tensor is stored so, else float32: never less than either."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _floating(state: State) -> list[str]:
    return [key for key, tensor in state.items() if tensor.is_floating_point()]


def _same_keys(first: list[str], second: list[str], names: tuple[str, str]) -> None:
    for there, here, name in ((first, set(second), names[1]), (second, set(first), names[0])):
        missing = [key for key in there if key not in here]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise KeyError(f"{name} lacks the floating-point tensor '{missing[0]}'{more}")


def _same_shape(key: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"'{key}' has shape {tuple(first.shape)} in the base and {tuple(second.shape)} elsewhere")
