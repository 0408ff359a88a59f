"""Elastic weight consolidation: parameters that mattered for earlier tasks are held."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def ewc_penalty(current: Sequence[Tensor], previous: Sequence[Tensor], fisher: Sequence[Tensor]) -> Tensor:
    """½ Σ F_i (θ_i − θ*_i)² (Kirkpatrick et al., PNAS 2017, equation 3, without its λ).

    Args:
        current: parameters of the model in training, any shapes.
        previous: θ*, the parameters after the previous task, the same shapes, constant.
        fisher: diagonal Fisher information of the earlier tasks, values ≥ 0, the same shapes, constant.

    Returns:
        A scalar ≥ 0, differentiable in ``current``.

    Raises:
        ValueError: when the three differ in length or there is no tensor.
    """
    if not current or not len(current) == len(previous) == len(fisher):
        raise ValueError(f"EWC over {len(current)}, {len(previous)} and {len(fisher)} tensors")
    return sum((weight * (value - held).square()).sum() for value, held, weight in zip(current, previous, fisher)) / 2
