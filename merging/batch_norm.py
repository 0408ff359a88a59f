"""Running statistics of BatchNorm after a merge."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace every BatchNorm's running mean and variance by the average over the given batches, in place.

    Cumulative average (momentum ``None``): every batch weighs the same. Only BatchNorm layers are put in training
    mode while it runs; modes and momenta are restored. Weights, dropout and all other buffers do not change.

    Args:
        model: takes one batch as its only argument.
        batches: inputs, such as ``(N, 3, H, W)`` images, on the model's device.

    Returns:
        Number of batches seen.

    Raises:
        ValueError: when the model has no BatchNorm with running statistics or there is no batch.
    """
    layers = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.running_mean is not None]
    if not layers:
        raise ValueError("the model has no BatchNorm with running statistics to re-estimate")
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    before = [(m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone()) for m in layers]
    seen = 0
    model.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        for batch in batches:
            model(batch)
            seen += 1
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        if not seen:
            for layer, (mean, variance, count) in zip(layers, before):
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(variance)
                layer.num_batches_tracked.copy_(count)
    if not seen:
        raise ValueError("expected at least one batch to re-estimate BatchNorm statistics, got none")
    return seen
