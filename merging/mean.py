"""Weighted means that stay between their values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bounded_mean(values: Sequence[Tensor], weights: Sequence[float] | Sequence[Tensor] | None = None) -> Tensor:
    """Σ_k w_k x_k / Σ_k w_k, held between the smallest and the largest value.

    The sums run in the order given. Holding the mean in bounds changes nothing but rounding, and makes the mean of
    equal values that value, bit for bit and whatever the weights.

    Args:
        values: at least one tensor, all of the same shape, float64; not changed.
        weights: numbers or tensors of that shape, ≥ 0, their sum above 0; ``None`` for equal weights, whose sum is
            divided once by the count.

    Returns:
        A tensor of that shape.
    """
    low = high = values[0]
    total = values[0].clone() if weights is None else values[0] * weights[0]
    for number, value in enumerate(values[1:], 1):
        total += value if weights is None else value * weights[number]
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    divisor = len(values) if weights is None else _sum(weights)
    return torch.clamp(total.div_(divisor), low, high)


def _sum(weights: Sequence[float] | Sequence[Tensor]) -> float | Tensor:
    total = weights[0]
    for weight in weights[1:]:
        total = total + weight
    return total
