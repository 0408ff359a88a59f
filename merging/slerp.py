"""SLERP: spherical interpolation between two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merging.blocks import Inputs, Range
from merging.checks import choice, number
from merging.job import merge_states
from merging.layers import is_statistic
from merging.merger import Merger, MergeSettings
from merging.result import MergeResult, State

# Closer to parallel than this, sin(angle) loses its digits and the arc is a line (the value mergekit uses).
PARALLEL = 0.9995


def slerp_merging(
    base: State,
    models: Sequence[State],
    *,
    t: float = 0.5,
    scope: Literal["tensor", "model"] = "tensor",
    settings: MergeSettings | None = None,
) -> MergeResult:
    """θ = sin((1−t)Ω)/sin Ω · θ_1 + sin(tΩ)/sin Ω · θ_2, Ω the angle between the models (Shoemake, SIGGRAPH 1985).

    Scope: Ω per tensor, or one Ω for the whole model. Steps: norms and dot product, angle, weighted sum; weights are
    taken as they are, not the task vectors. No divisor, no ties. Straight interpolation instead where a tensor is zero,
    where |cos Ω| > 0.9995, and for BatchNorm statistics, which are no directions. The two ends return a model bit for
    bit, and so does merging a model with itself.

    Args:
        base: gives keys, order, dtypes and integer tensors; its weights do not enter.
        models: exactly two.
        t: position from the first model (0) to the second (1).
        scope: ``tensor`` or ``model``.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model; ``coefficients`` holds the weight of the first model per tensor.

    Raises:
        ValueError: when there are not two models, a tensor does not fit or is not finite, or an option is out of range.
        TypeError: when a model is no mapping of tensors, or an option has the wrong type.
    """
    return merge_states("slerp", prepare_slerp, base, models, {"t": t, "scope": scope}, settings)


def prepare_slerp(inputs: Inputs, *, t: float, scope: Literal["tensor", "model"]) -> Merger:
    """See :func:`slerp_merging`."""
    if len(inputs.models) != 2:
        raise ValueError(f"SLERP interpolates between exactly two models; got {len(inputs.models)}")
    number("t", t, low=0.0, high=1.0)
    choice("scope", scope, ("tensor", "model"))
    directions = [key for key in inputs.plan.merged if not is_statistic(key)]
    products = inputs.sums(lambda at: _products(*inputs.read_models(at)), directions, "angles")
    if scope == "model":
        total = [math.fsum(column) for column in zip(*products.values())]
        products = dict.fromkeys(products, total)
    pairs = {key: _arc(t, *products[key]) for key in products}

    def merge(at: Range) -> Tensor:
        first, second = inputs.read_models(at)
        pair = pairs.get(at.key)
        if pair is None:
            return torch.lerp(first, second, t)
        return first.mul_(pair[0]).add_(second.mul_(pair[1]))

    weights = {key: (pairs.get(key) or (1.0 - t, t))[0] for key in inputs.plan.merged}
    return Merger(merge, coefficients=weights, weights=lambda key: (1.0 - t, t))


def _products(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    return (first * first).sum().item(), (second * second).sum().item(), (first * second).sum().item()


def _arc(t: float, first: float, second: float, dot: float) -> tuple[float, float] | None:
    """Weights of the two models on the arc; ``None`` where the arc is a line."""
    length = math.sqrt(first) * math.sqrt(second)
    if length == 0.0 or not math.isfinite(length):
        return None
    cosine = max(-1.0, min(1.0, dot / length))
    if abs(cosine) > PARALLEL:
        return None
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
