"""Domain-statistics replay: images of the current domain in the colours of a past one; six numbers kept, no image."""

from __future__ import annotations

import torch
from torch import Tensor

from duet.detectors.base import DomainStatistics


def recolour(
    images: Tensor,
    own: DomainStatistics,
    past: tuple[DomainStatistics, ...],
    share: float,
    generator: torch.Generator,
) -> None:
    """Give part of a batch the colour statistics of past domains, in place.

    Args:
        images: (B, 3, H, W), 0 to 1.
        own: statistics of the domain the images are from.
        past: statistics to draw from, one per image.
        share: share of the batch, rounded down.
        generator: of the choices.
    """
    count = int(len(images) * share)
    chosen = torch.randperm(len(images), generator=generator)[:count]
    domains = torch.randint(len(past), (count,), generator=generator)
    own_mean, own_std = (images.new_tensor(values).view(3, 1, 1) for values in (own.mean, own.std))
    for index, domain in zip(chosen.tolist(), domains.tolist()):
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (past[domain].mean, past[domain].std))
        images[index] = ((images[index] - own_mean) / own_std * std + mean).clamp(0, 1)
