"""Weight averaging: the mean of the models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merging.blocks import Inputs, Range
from merging.checks import convex_weights
from merging.job import merge_states
from merging.mean import bounded_mean, plain_mean
from merging.merger import Merger, MergeSettings
from merging.result import MergeResult, State


def weight_averaging(
    base: State,
    models: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    settings: MergeSettings | None = None,
) -> MergeResult:
    """θ = Σ_k w_k θ_k / Σ_k w_k (the uniform soup of Wortsman et al., ICML 2022, section 2; the weights are ours).

    Scope: each scalar by itself. Divisor: the sum of the weights. No ties can occur. Merging a model with itself
    returns it bit for bit.

    Args:
        base: gives keys, order, dtypes and integer tensors; its weights do not enter the mean.
        models: at least one, name → tensor.
        weights: one number ≥ 0 per model, not all 0; ``None`` weighs all alike.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model.

    Raises:
        ValueError: when a tensor does not fit or is not finite, or a weight is out of range.
        TypeError: when a model is no mapping of tensors, or a weight no number.
    """
    return merge_states("averaging", prepare_averaging, base, models, {"weights": weights}, settings)


def prepare_averaging(inputs: Inputs, *, weights: Sequence[float] | None) -> Merger:
    """See :func:`weight_averaging`."""
    shares = convex_weights(weights, len(inputs.models))

    def merge(at: Range) -> Tensor:
        # One model at a time: memory does not grow with their number.
        blocks = (inputs.read(model, at, check=False) for model in inputs.models)
        if weights is None and all(model.specs[at.key].dtype != torch.float64 for model in inputs.models):
            return plain_mean(blocks)
        return bounded_mean(blocks, None if weights is None else shares)

    return Merger(merge, weights=lambda key: shares)
