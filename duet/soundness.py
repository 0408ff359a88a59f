"""Whether weights are still weights: what came out of a training or a merge is looked at before it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from duet.errors import TrainingStopped

State = Mapping[str, Tensor]

# A merge by weighted means cannot grow at all, and the sum of two task vectors at most threefold.
MOST_GROWTH = 10.0


def refuse_not_finite(state: State, what: str, option: str) -> None:
    """Refuse weights with NaN or infinity among them.

    Args:
        state: tensors by name.
        what: what they are, for the message.
        option: an option of ``--set`` that may help.

    Raises:
        TrainingStopped: naming the first such tensor.
    """
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingStopped(f"{what} holds values that are not finite ('{key}')", option)


def refuse_exploded(merged: State, inputs: Iterable[State], keys: Iterable[str], option: str) -> None:
    """Refuse a merge whose weights grew far beyond those that went into it.

    Args:
        merged: tensors by name.
        inputs: θ_0 and the models that were merged.
        keys: the parameters that are compared, by the L2 norm over all of them.
        option: an option of ``--set`` that may help.

    Raises:
        TrainingStopped: when the merge is not finite, or its norm is more than ``MOST_GROWTH`` times the largest of
            the inputs' norms.
    """
    names = [key for key in keys if key in merged]
    refuse_not_finite(merged, "the merge", option)
    largest = max(_norm(state, names) for state in inputs)
    norm = _norm(merged, names)
    if norm > MOST_GROWTH * largest:
        raise TrainingStopped(
            f"the merge exploded: its weights have the norm {norm:.4g}, those that were merged at most {largest:.4g}",
            option,
        )


def _norm(state: State, keys: Iterable[str]) -> float:
    norms = [torch.linalg.vector_norm(state[key], dtype=torch.float64) for key in keys]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
