"""Running statistics of BatchNorm after a merge: as a mixture, by the method's coefficients, or re-estimated.

By the coefficients is what a method does by itself (``batch_norm="method"``): averaging, Fisher, SLERP and DuET mix
means and variances with the weights of the layer, which leaves out that the models' means differ. A mixture
(``batch_norm="mixture"``) includes it. Both are estimates: what the merged weights produce is known only by running
them, which :func:`reestimate` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from merging.blocks import Inputs, Range
from merging.layers import is_statistic, is_variance, mean_key
from merging.mean import bounded_mean
from merging.merger import Merger
from merging.result import MergeResult


def mixture(
    means: Sequence[Tensor], variances: Sequence[Tensor], weights: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a mixture of distributions: the law of total variance.

    μ = Σ_k w_k μ_k; σ² = Σ_k w_k (σ²_k + (μ_k − μ)²). Running variances are unbiased estimates, which the formula
    takes as variances; the difference is a factor n / (n − 1) of the batch.

    Args:
        means: running means, float64, all of one shape.
        variances: running variances of that shape, in the same order.
        weights: numbers ≥ 0, not all 0; ``None`` for equal ones.

    Returns:
        μ and σ², of that shape; σ² ≥ 0 where all variances are.
    """
    mean = bounded_mean(means, weights)
    spread = [variance + (other - mean).square_() for other, variance in zip(means, variances)]
    return mean, bounded_mean(spread, weights)


def with_mixture(inputs: Inputs, merger: Merger) -> Callable[[Range], Tensor]:
    """The merge of a method, with running statistics merged as a mixture instead.

    Args:
        inputs: the models.
        merger: the method; its weights per key are those of the mixture, equal ones where it has none.

    Returns:
        A function from a range to the merged block.

    Raises:
        ValueError: when a running variance has no running mean beside it.
    """
    merged = set(inputs.plan.merged)
    for key in inputs.plan.merged:
        if is_variance(key) and mean_key(key) not in merged:
            raise ValueError(f"'{key}' cannot be merged as a mixture: '{mean_key(key)}' is missing or does not fit")

    def merge(at: Range) -> Tensor:
        if not is_statistic(at.key):
            return merger.merge(at)
        weights = merger.weights(at.key) if merger.weights else None
        if not is_variance(at.key):
            return bounded_mean(inputs.read_models(at), weights)
        means = inputs.read_models(at._replace(key=mean_key(at.key)))
        return mixture(means, inputs.read_models(at), weights)[1]

    return merge


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Replace the running mean and variance of every BatchNorm by their average over the given batches, in place.

    Every batch weighs the same, also a smaller last one. Only BatchNorm layers run in training mode meanwhile; modes
    and momenta are restored, and nothing else changes. If it fails, the statistics are as before.

    Args:
        model: called with one batch as its only argument.
        batches: inputs such as images ``(N, 3, H, W)``, on the model's device.

    Returns:
        Number of batches.

    Raises:
        ValueError: when the model has no BatchNorm with running statistics, or there is no batch.
    """
    layers = [module for module in model.modules() if _has_statistics(module)]
    if not layers:
        raise ValueError("the model has no BatchNorm with running statistics to re-estimate")
    before = [copy.deepcopy(dict(layer.named_buffers())) for layer in layers]
    seen = 0
    try:
        with _estimating(model, layers):
            for batch in batches:
                model(batch)
                seen += 1
        if not seen:
            raise ValueError("expected at least one batch to re-estimate BatchNorm statistics, got none")
    except BaseException:
        for layer, buffers in zip(layers, before):
            layer.load_state_dict(buffers, strict=False)
        raise
    return seen


def reestimate_result(result: MergeResult, model: nn.Module, batches: Iterable[Any]) -> MergeResult:
    """A merge whose BatchNorm statistics are those of its own activations on the given batches.

    Args:
        result: a merge whose state fits the model.
        model: gives the architecture; its weights are replaced by those of the result.
        batches: see :func:`reestimate`.

    Returns:
        A new result; its provenance says ``batch_norm: reestimated`` and the number of batches.

    Raises:
        ValueError: see :func:`reestimate`.
        RuntimeError: when the state does not fit the model.
    """
    model.load_state_dict(result.state)
    count = reestimate(model, batches)
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    provenance = {**result.provenance, "batch_norm": "reestimated", "batch_norm_batches": count}
    return replace(result, state=state, provenance=provenance)


@contextmanager
def _estimating(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """BatchNorm layers gather a plain average from nothing; everything else is in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.train()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
