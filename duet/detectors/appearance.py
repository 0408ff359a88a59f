"""Random appearance: pictures of one domain in tones, colours and textures of none, so that no domain is leaned on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

CHANGES = 2  # per picture


def vary(images: Tensor, share: float, generator: torch.Generator) -> None:
    """Change the appearance of part of a batch at random, in place; boxes stay where they are.

    Each chosen picture goes through two changes drawn from `_CHANGES`, each of a random strength. Domain
    randomisation (Tobin et al., IROS 2017) with common picture operations. None of the domain shifts is among them,
    though comic and watercolour have few levels too.

    Args:
        images: (B, 3, H, W), 0 to 1.
        share: share of the batch, rounded down.
        generator: of the choices.
    """
    count = int(len(images) * share)
    for index in torch.randperm(len(images), generator=generator)[:count].tolist():
        for kind in torch.randperm(len(_CHANGES), generator=generator)[:CHANGES].tolist():
            images[index] = _CHANGES[kind](images[index], generator).clamp(0, 1)


def _between(low: float, high: float, generator: torch.Generator, shape: tuple[int, ...] = ()) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _tone(image: Tensor, generator: torch.Generator) -> Tensor:
    return image ** float(_between(-1.0, 1.0, generator).exp())


def _contrast(image: Tensor, generator: torch.Generator) -> Tensor:
    return transforms.adjust_contrast(image, float(_between(0.3, 1.8, generator)))


def _colours(image: Tensor, generator: torch.Generator) -> Tensor:
    factor, offset = _between(0.6, 1.4, generator, (3, 1, 1)), _between(-0.2, 0.2, generator, (3, 1, 1))
    return image * factor.to(image) + offset.to(image)


def _saturation(image: Tensor, generator: torch.Generator) -> Tensor:
    return transforms.adjust_saturation(image, float(_between(0.0, 2.5, generator)))


def _few_levels(image: Tensor, generator: torch.Generator) -> Tensor:
    levels = float(_between(3.0, 10.0, generator))
    return (image * levels).round() / levels


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    return transforms.gaussian_blur(image, [5, 5], [float(_between(0.5, 2.0, generator))])


def _sharpness(image: Tensor, generator: torch.Generator) -> Tensor:
    return transforms.adjust_sharpness(image, float(_between(2.0, 10.0, generator)))


def _noise(image: Tensor, generator: torch.Generator) -> Tensor:
    strength = float(_between(0.02, 0.12, generator))
    return image + strength * torch.randn(image.shape, generator=generator).to(image)


_CHANGES: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (
    _tone, _contrast, _colours, _saturation, _few_levels, _blur, _sharpness, _noise,
)  # fmt: skip
