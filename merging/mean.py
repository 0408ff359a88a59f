"""Weighted means that stay between their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor


def plain_mean(values: Iterable[Tensor]) -> Tensor:
    """Σ_k x_k / K, one value in memory at a time.

    For values that float32 can hold, the mean stays between the smallest and the largest by itself, and that of equal
    values is that value: every j·x is exact in float64, and rounding never turns an order over.

    Args:
        values: at least one tensor, all of the same shape, float64; not changed.

    Returns:
        A tensor of that shape.
    """
    values = iter(values)
    total, count = next(values).clone(), 1
    for value in values:
        total += value
        count += 1
    return total.div_(count)


def bounded_mean(values: Iterable[Tensor], weights: Sequence[float] | Sequence[Tensor] | None = None) -> Tensor:
    """Σ_k w_k x_k / Σ_k w_k, held between the smallest and the largest value.

    The sums run in the order given, one value in memory at a time. Holding the mean in bounds changes nothing but
    rounding, and makes the mean of equal values that value, bit for bit and whatever the weights.

    Args:
        values: at least one tensor, all of the same shape, float64; not changed.
        weights: numbers or tensors of that shape, ≥ 0, their sum above 0; ``None`` for equal weights, whose sum is
            divided once by the count.

    Returns:
        A tensor of that shape.
    """
    pairs = zip(values, repeat(None) if weights is None else weights)
    first, weight = next(pairs)
    low = high = first
    total, divisor = _weighted(first, weight).clone(), 1 if weight is None else weight
    for value, weight in pairs:
        total += _weighted(value, weight)
        divisor = divisor + (1 if weight is None else weight)
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    return torch.clamp(total.div_(divisor), low, high)


def _weighted(value: Tensor, weight: float | Tensor | None) -> Tensor:
    return value if weight is None else value * weight
