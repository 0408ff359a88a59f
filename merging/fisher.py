"""Fisher merging: the mean of the models, weighted per scalar by diagonal Fisher information."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from merging.blocks import Inputs, Range
from merging.checks import convex_weights, number
from merging.job import merge_states
from merging.layers import is_statistic
from merging.mean import bounded_mean
from merging.merger import Merger, MergeSettings
from merging.result import MergeResult, State
from merging.sources import TensorSource, as_source


def fisher_merging(
    base: State,
    models: Sequence[State],
    *,
    fishers: Sequence[State | TensorSource],
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    floor: float = 1e-6,
    settings: MergeSettings | None = None,
) -> MergeResult:
    """θ = Σ_k w_k F_k θ_k / Σ_k w_k F_k per scalar (Matena and Raffel, NeurIPS 2022, equation 4).

    Scope: each scalar by itself. Steps: each Fisher mapping is divided by its ℓ2 norm over all parameters
    (``normalize``), values below ``floor`` count as ``floor``, weighted mean. Divisor: the sum of the weights of that
    scalar. No ties can occur. Both steps are those of the authors' scripts, with their values; but where all values are
    below the floor the scalar becomes the plain mean here, and the first model's value there unless told otherwise.

    The Fisher mappings are the squared gradients of the log-likelihood, averaged over task data by the caller. Running
    statistics of BatchNorm have none: they take the mean with ``weights`` unless the mappings hold them.

    Args:
        base: gives keys, order, dtypes and integer tensors; its weights do not enter.
        models: θ_k, at least one.
        fishers: one mapping per model, in the same order: name → diagonal Fisher values ≥ 0 of the tensor's shape.
        weights: w_k ≥ 0; ``None`` for equal ones.
        normalize: whether mappings of different scale count alike.
        floor: smallest Fisher value, above 0.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model.

    Raises:
        ValueError: when a tensor does not fit, a Fisher mapping lacks a parameter or holds a negative value, or an
            option is out of range.
        TypeError: when a model or Fisher mapping is no mapping of tensors.
    """
    options = {"fishers": fishers, "weights": weights, "normalize": normalize, "floor": floor}
    return merge_states("fisher", prepare_fisher, base, models, options, settings)


def prepare_fisher(
    inputs: Inputs,
    *,
    fishers: Sequence[State | TensorSource],
    weights: Sequence[float] | None,
    normalize: bool,
    floor: float,
) -> Merger:
    """See :func:`fisher_merging`."""
    shares = convex_weights(weights, len(inputs.models))
    smallest = number("floor", floor, low=1e-300)
    sources = _sources(fishers, len(inputs.models))
    without = _without_fisher(inputs, sources)
    norms = _norms(inputs, sources, without) if normalize else [1.0] * len(sources)

    def merge(at: Range) -> Tensor:
        blocks = inputs.read_models(at)
        if at.key in without:
            return bounded_mean(blocks, shares)
        values = [_fisher(inputs, source, at).div_(norm).clamp_(min=smallest) for source, norm in zip(sources, norms)]
        return bounded_mean(blocks, [value.mul_(share) for value, share in zip(values, shares)])

    report = {"fisher_norms": norms, "without_fisher": sorted(without)}
    return Merger(merge, weights=lambda key: shares, report=lambda: report)


def _sources(fishers: Sequence[State | TensorSource], count: int) -> list[TensorSource]:
    if isinstance(fishers, (str, bytes)) or not isinstance(fishers, Sequence):
        raise TypeError(f"option 'fishers': expected one mapping per model, got {type(fishers).__name__}")
    if len(fishers) != count:
        raise ValueError(f"option 'fishers': expected one mapping for each of the {count} models, got {len(fishers)}")
    return [as_source(fisher, f"Fisher mapping {index}") for index, fisher in enumerate(fishers, 1)]


def _norms(inputs: Inputs, sources: Sequence[TensorSource], without: set[str]) -> list[float]:
    """ℓ2 norm of each mapping; refuses negative values and a mapping that is zero throughout."""

    def squares(at: Range) -> list[float]:
        return [_fisher(inputs, source, at).square_().sum().item() for source in sources]

    keys = [key for key in inputs.plan.merged if key not in without]
    rows = inputs.sums(squares, keys, "Fisher norms").values()
    norms = [math.sqrt(math.fsum(column)) for column in zip(*rows)]
    for source, norm in zip(sources, norms):
        if norm == 0.0:
            raise ValueError(f"{source.name}: all Fisher values are 0, which says nothing about the model")
    return norms


def _fisher(inputs: Inputs, source: TensorSource, at: Range) -> Tensor:
    fisher = inputs.read(source, at)
    if (fisher < 0).any():
        raise ValueError(f"{source.name}: '{at.key}' holds {fisher.min().item():g}; Fisher values are never negative")
    return fisher


def _without_fisher(inputs: Inputs, sources: Sequence[TensorSource]) -> set[str]:
    """The statistics no Fisher mapping has; anything else that is missing or misshapen is refused."""
    without = set()
    for key in inputs.plan.merged:
        if is_statistic(key) and not any(key in source.specs for source in sources):
            without.add(key)
            continue
        for source in sources:
            expected, found = inputs.plan.specs[key].shape, source.specs.get(key)
            if found is None:
                raise ValueError(f"{source.name}: '{key}' is missing")
            if found.shape != expected:
                raise ValueError(f"{source.name}: '{key}' has shape {found.shape}, expected {expected}")
    return without
