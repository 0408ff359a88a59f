"""The merge as an ordinary differentiable function: for derivatives of the second order.

Slower and larger than :mod:`merging.adaptation`, whose gradients it also checks in the tests: autograd holds every
intermediate tensor of the merge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from merging.adaptation import UnlabelledTask
from merging.coefficients import Coefficients
from merging.concrete import MaskDraw, concrete_mask, draw_noise, rescaled
from merging.family import Family


def differentiable_merge(
    family: Family, values: Tensor, columns: Mapping[str, int], logits: Mapping[str, Tensor] | None, mask: MaskDraw
) -> dict[str, Tensor]:
    """θ_0 + r ∘ Σ_k λ_k τ_k as a function of λ and x.

    Args:
        family: pretrained model and task vectors.
        values: λ, ``(K, G)``.
        columns: key → group.
        logits: x; ``None`` for all ones.
        mask: gives noise and temperature.

    Returns:
        key → merged tensor, in the graph of λ and x.
    """
    weights = {}
    for key, base in family.base.items():
        factors = values[:, columns[key]].to(base.dtype)
        delta = sum(factor * vector[key].to(base.dtype) for factor, vector in zip(factors, family.vectors))
        if logits is not None:
            noise = draw_noise(mask, key, logits[key].numel()).view(logits[key].shape)
            delta = delta * rescaled(concrete_mask(logits[key], temperature=mask.temperature, noise=noise))
        weights[key] = base + delta
    return weights


def through_inner_step(
    family: Family, tasks: Sequence[UnlabelledTask], start: Coefficients, mask: MaskDraw, rate: float
) -> tuple[list[float], dict[str, Tensor]]:
    """One step of both levels, differentiated as a whole: dL_upper(x, λ − η ∂L_inner(x, λ)/∂λ) / dx.

    Args:
        family: pretrained model and task vectors.
        tasks: each gives one batch for the inner, then one for the upper level.
        start: λ.
        mask: the logits and the sample.
        rate: η.

    Returns:
        The losses of the upper level, and key → gradient of the logits.

    Raises:
        ValueError: when an upper loss is not finite.
    """
    logits = {key: tensor.detach().clone().requires_grad_() for key, tensor in mask.logits.items()}
    values = start.values.detach().clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the other attention kernels have no second derivative
        inner = torch.stack(_losses(family, tasks, differentiable_merge(family, values, start.columns, logits, mask)))
        (slope,) = torch.autograd.grad(inner.sum(), values, create_graph=True)
        moved = differentiable_merge(family, values - rate * slope, start.columns, logits, mask)
        upper = torch.stack(_losses(family, tasks, moved))
        if not upper.isfinite().all():
            raise ValueError(f"the losses are {upper.tolist()}; expected finite numbers")
        gradients = torch.autograd.grad(upper.sum(), list(logits.values()), allow_unused=True)
    found = {key: gradient for key, gradient in zip(logits, gradients) if gradient is not None}
    return upper.tolist(), found


def _losses(family: Family, tasks: Sequence[UnlabelledTask], weights: dict[str, Tensor]) -> list[Tensor]:
    forward = family.forward(weights)
    return [task.loss(task.logits(forward, task.next_batch())) for task in tasks]
