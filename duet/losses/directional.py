"""Directional consistency: updates of the shared parameters should not turn against the previous update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def directional_consistency(
    current: Sequence[Tensor],
    previous: Sequence[Tensor],
    direction: Sequence[Tensor],
    granularity: Literal["scalar", "tensor"] = "scalar",
) -> Tensor:
    """Sum over the shared parameters of relu(−u·v), u = θ_t − θ_(t−1) and v = τ_(t−1) − τ_(t−2).

    DuET, section 4.3, M16. With τ_0 = 0 it is defined from the second task on, where v = θ_1 − θ_0. The paper
    leaves open whether "i" runs over scalars or tensors and calls the product a dot product: ``scalar`` takes the
    relu of each scalar product, ``tensor`` that of each tensor's dot product. Parameters only, no buffers. The value
    is a sum: it grows with the number of parameters. At u = 0 the value and the gradient are exactly zero.

    Args:
        current: shared parameters of the model in training, any shapes.
        previous: θ_(t−1), the same shapes, constant.
        direction: v, the same shapes, constant.
        granularity: what the relu is taken of.

    Returns:
        A scalar, differentiable in ``current``.

    Raises:
        ValueError: when the three sequences differ in length or there is no tensor: a loss over nothing would be
            zero without a word.
    """
    if not current:
        raise ValueError("directional consistency: no shared parameter was given")
    if not len(current) == len(previous) == len(direction):
        raise ValueError(
            "directional consistency: expected as many previous tensors and directions as parameters "
            f"({len(current)}), found {len(previous)} and {len(direction)}"
        )
    if granularity == "tensor":
        opposed = torch._foreach_mul(torch._foreach_sub(list(previous), list(current)), list(direction))  # −u·v
        return torch.stack([product.sum() for product in opposed]).relu().sum()
    return _OpposedScalars.apply(list(previous), list(direction), *current)


class _OpposedScalars(torch.autograd.Function):
    """Σ relu(−u·v) with its gradient −v where u·v < 0, made in the forward pass with four sweeps over the memory.

    Autograd's own graph of the same expression sweeps more than twice as often, which shows on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, previous: list[Tensor], direction: list[Tensor], *current: Tensor) -> Tensor:
        opposed = torch._foreach_sub(previous, list(current))
        torch._foreach_mul_(opposed, direction)  # −u·v
        torch._foreach_clamp_min_(opposed, 0.0)
        value = torch.stack(torch._foreach_norm(opposed, 1)).sum()
        torch._foreach_sign_(opposed)  # 1 where the signs conflict
        torch._foreach_mul_(opposed, direction)
        ctx.negative_gradient = opposed
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return (None, None, *torch._foreach_mul(ctx.negative_gradient, -upstream))
