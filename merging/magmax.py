"""MagMax: per scalar, the task-vector value of the largest magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merging.blocks import Inputs, Range
from merging.checks import number
from merging.job import merge_states
from merging.merger import Merger, MergeSettings
from merging.result import MergeResult, State


def magmax_merging(
    base: State,
    models: Sequence[State],
    *,
    scaling_factor: float = 1.0,
    settings: MergeSettings | None = None,
) -> MergeResult:
    """θ = θ_0 + λ τ, where τ takes per scalar the τ_k of the largest |τ_k| (Marczak et al., ECCV 2024, section 4).

    Scope: each scalar by itself. Steps: differences, selection, scale, add. No divisor. Tie rule: of equal magnitudes
    of opposite sign the positive one wins; the authors' code takes the later task, so that theirs depends on the order
    of the models and ours does not. The paper fine-tunes sequentially, τ_k = θ_after_k − θ_0, and leaves λ to
    validation data; 1 is our default. With λ = 1 the chosen θ_k itself is taken, so that rounding cannot change it.

    Args:
        base: θ_0, name → tensor.
        models: θ_k, at least one.
        scaling_factor: λ.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model.

    Raises:
        ValueError: when a tensor does not fit or is not finite, or λ is not finite.
        TypeError: when a model is no mapping of tensors, or λ no number.
    """
    return merge_states("magmax", prepare_magmax, base, models, {"scaling_factor": scaling_factor}, settings)


def prepare_magmax(inputs: Inputs, *, scaling_factor: float) -> Merger:
    """See :func:`magmax_merging`."""
    factor = number("scaling_factor", scaling_factor)

    def merge(at: Range) -> Tensor:
        base = inputs.read_base(at)
        largest = inputs.read(inputs.models[0], at)
        for model in inputs.models[1:]:
            other = inputs.read(model, at)
            magnitude, rival = (largest - base).abs_(), (other - base).abs_()
            wins = (rival > magnitude) | ((rival == magnitude) & (other > largest))
            largest = torch.where(wins, other, largest)
        return largest if factor == 1.0 else base.add_(largest.sub_(base).mul_(factor))

    return Merger(merge)
