"""DuET's layer-wise merge of the previous and the current model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from merging.blocks import Inputs, Range
from merging.checks import choice, number
from merging.job import merge_states
from merging.layers import by_layer, is_statistic, layer_of
from merging.merger import Merger, MergeSettings
from merging.result import MergeResult, State

Scope = Literal["layer", "tensor"]


def duet_merging(
    base: State,
    models: Sequence[State],
    *,
    gamma: float = 0.1,
    alpha_base: float = 0.5,
    epsilon: float = 1e-8,
    scope: Scope = "layer",
    settings: MergeSettings | None = None,
) -> MergeResult:
    """Merge (previous, current) with a retention weight α per layer (Monga et al., ICCV 2025, equations 9 to 12).

    Per layer l, with τ_old = θ_{t−1} − θ_0, τ_curr = θ_t − θ_0 and ℓ1 norms:
    p = (‖τ_old‖ − ‖τ_curr‖) / (‖τ_old + τ_curr‖ + ε); α = α_base + clamp(γ·tanh(p), −γ, γ); β = 1 − α;
    θ = θ_0 + α·τ_old + β·τ_curr.

    Deviations and readings:
        * Computed as θ_{t−1} + β·(θ_t − θ_{t−1}). Equal in algebra because α + β = 1, and it returns a model merged
          with itself bit for bit. θ_0 enters p alone.
        * The paper does not define a layer: here the module that owns the tensors (key without its last component),
          its norms taken over its parameters. Running statistics follow their layer's α and β: with both ≥ 0 a
          mixture of positive variances stays positive. A layer that has statistics only takes its norms from these.
        * ``scope="tensor"`` gives every tensor its own coefficient, statistics by their own norms, as public
          reproductions do.
        * ε has no stated value; 1e-8 is ours.
        * Integer tensors (``num_batches_tracked``) are the current model's.

    Divisor: none beyond ‖·‖ + ε. Ties: p = 0 where both norms are equal, hence α = α_base.

    Args:
        base: θ_0, name → tensor.
        models: exactly two: θ_{t−1} (previous, merged), θ_t (current).
        gamma: γ in [0, 1], the largest distance of α from α_base.
        alpha_base: α_base in [0, 1].
        epsilon: ε > 0.
        scope: ``layer`` or ``tensor``.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model; ``coefficients`` holds α per layer (per tensor for that scope). It lies in [0, 1] whenever
        α_base ± 0.762·γ does; beyond, the merge extrapolates as the equations say.

    Raises:
        ValueError: when there are not two models, a tensor does not fit or is not finite, or an option is out of range.
        TypeError: when a model is no mapping of tensors, or an option has the wrong type.
    """
    options = {"gamma": gamma, "alpha_base": alpha_base, "epsilon": epsilon, "scope": scope}
    return merge_states("duet", prepare_duet, base, models, options, settings)


def prepare_duet(inputs: Inputs, *, gamma: float, alpha_base: float, epsilon: float, scope: Scope) -> Merger:
    """See :func:`duet_merging`."""
    if len(inputs.models) != 2:
        raise ValueError(f"DuET merges exactly two models, previous and current; got {len(inputs.models)}")
    number("gamma", gamma, low=0.0, high=1.0)
    number("alpha_base", alpha_base, low=0.0, high=1.0)
    number("epsilon", epsilon, low=1e-300)
    choice("scope", scope, ("layer", "tensor"))
    norms = inputs.sums(lambda at: _norms(*inputs.task_vectors(at)), inputs.plan.merged, "norms")
    keys = list(inputs.plan.merged)
    groups = by_layer(keys) if scope == "layer" else {key: [key] for key in keys}
    alpha = {name: _retention(_basis(members), norms, gamma, alpha_base, epsilon) for name, members in groups.items()}

    def alpha_of(key: str) -> float:
        return alpha[layer_of(key) if scope == "layer" else key]

    def merge(at: Range) -> Tensor:
        previous, current = inputs.read_models(at)
        return previous.add_(current.sub_(previous).mul_(1.0 - alpha_of(at.key)))

    return Merger(
        merge,
        integers_from="last",
        coefficients=alpha,
        weights=lambda key: (alpha_of(key), 1.0 - alpha_of(key)),
    )


def _norms(old: Tensor, current: Tensor) -> tuple[float, float, float]:
    """ℓ1 norms of τ_old, τ_curr and their sum."""
    return old.abs().sum().item(), current.abs().sum().item(), old.add(current).abs_().sum().item()


def _basis(keys: list[str]) -> list[str]:
    """The tensors whose norms decide for a group: its parameters, or its statistics where it has nothing else."""
    return [key for key in keys if not is_statistic(key)] or keys


def _retention(
    keys: list[str], norms: dict[str, list[float]], gamma: float, alpha_base: float, epsilon: float
) -> float:
    """α of one group (equations 9 to 11)."""
    rows = [norms[key] for key in keys if key in norms]  # an empty tensor has no norms
    old, current, both = (math.fsum(column) for column in zip(*rows)) if rows else (0.0, 0.0, 0.0)
    shift = gamma * math.tanh((old - current) / (both + epsilon))
    return alpha_base + max(-gamma, min(gamma, shift))
