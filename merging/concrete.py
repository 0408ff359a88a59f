"""The binary Concrete mask: a relaxed Bernoulli variable per scalar, sampled again whenever it is asked.

Concrete subspace learning (Tang et al., 2023, arXiv 2312.06173) after Maddison et al., ICLR 2017.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.checks import number

# Scalars drawn at once, from a generator of their own: a block of every operand stays in the processor's cache.
MASK_BLOCK = 1 << 17
# torch.rand gives multiples of 2^-24 from 0 on; half a step keeps the logarithm of 0 away.
_SMALLEST = 2.0**-25


def logistic_noise(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Logistic noise log u − log(1 − u) with u uniform in (0, 1), float32, on the generator's device.

    Args:
        shape: of the result.
        generator: where the randomness comes from; ``None`` for PyTorch's global one.

    Returns:
        Finite numbers.
    """
    device = generator.device if generator is not None else "cpu"
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device=device)
    return uniform.clamp_(min=_SMALLEST).logit_()


def concrete_mask(
    logits: Tensor,
    *,
    temperature: float = 0.5,
    binary: bool = False,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Sample m = σ((log u − log(1 − u) + x) / T) (arXiv 2312.06173, section 3.2); differentiable in x unless binary.

    Args:
        logits: x, any shape. P(m > 0.5) = σ(x), whatever the temperature.
        temperature: T > 0; the smaller, the nearer to 0 or 1.
        binary: 1 where the sample is above 0.5, else 0: the limit T → 0, a Bernoulli variable with mean σ(x).
        generator: for the noise; the same state gives the same mask.
        noise: log u − log(1 − u) drawn before, of the same shape; then nothing is drawn.

    Returns:
        The mask, shape and dtype of the logits, in [0, 1].

    Raises:
        ValueError: when the temperature is not above 0.
        TypeError: when it is no number.
    """
    if number("temperature", temperature, low=0.0) == 0.0:
        raise ValueError("option 'temperature': expected more than 0; binary=True is the limit")
    if noise is None:
        noise = logistic_noise(tuple(logits.shape), generator)
    shifted = noise.to(logits) + logits
    return (shifted > 0).to(logits.dtype) if binary else torch.sigmoid(shifted / temperature)


def rescaled(mask: Tensor) -> Tensor:
    """Divide by the mean of the tensor, which keeps the size of what it multiplies (arXiv 2312.06173, section 3.3).

    Args:
        mask: entries ≥ 0, any shape.

    Returns:
        The same shape, with mean 1; all 0 where the mask is.
    """
    return mask / mask.mean().clamp(min=torch.finfo(mask.dtype).tiny)


def mask_density(logits: Mapping[str, Tensor]) -> dict[str, float]:
    """The expected share of kept scalars per tensor, the mean of σ(x); from 0 to 1, and NaN for an empty tensor."""
    return {key: torch.sigmoid(tensor.detach().double()).mean().item() for key, tensor in logits.items()}


def mask_blocks(size: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` of the blocks of a flattened tensor."""
    return ((start, min(start + MASK_BLOCK, size)) for start in range(0, size, MASK_BLOCK))


@dataclass(frozen=True)
class MaskDraw:
    """One sample of a mask over a whole model, never held as a whole: each block is drawn again from its name.

    The same seed, draw, key and start give the same numbers, in any order and on any number of threads, so that the
    backward pass need not keep what the forward pass drew.

    Args:
        logits: key → x, float32, of the tensors that are masked.
        temperature: T.
        seed: of the whole training.
        draw: which sample it is; every step takes a new one.
        kind: ``concrete`` (relaxed), ``binary`` (its limit), or ``mean``: σ(x) itself, without randomness.
    """

    logits: Mapping[str, Tensor]
    temperature: float = 0.5
    seed: int = 0
    draw: int = 0
    kind: str = "concrete"

    def block(self, key: str, start: int, stop: int) -> Tensor:
        """Scalars ``[start, stop)`` of the mask of one tensor, before it is rescaled; ``(stop - start,)``."""
        logits = self.logits[key].detach().reshape(-1)[start:stop]
        if self.kind == "mean":
            return torch.sigmoid(logits)
        noise = self.noise(key, start, stop).add_(logits)
        return (noise > 0).to(logits.dtype) if self.kind == "binary" else noise.div_(self.temperature).sigmoid_()

    def noise(self, key: str, start: int, stop: int) -> Tensor:
        """The noise of one block that begins where :func:`mask_blocks` begins one."""
        device = self.logits[key].device
        text = f"{self.seed} {self.draw} {start} {key}".encode()
        generator = torch.Generator(device=device)
        generator.manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
        return logistic_noise((stop - start,), generator)


def draw_noise(mask: MaskDraw, key: str, size: int) -> Tensor:
    """The noise of one whole tensor, ``(size,)``."""
    parts = [mask.noise(key, start, stop) for start, stop in mask_blocks(size)]
    return torch.cat(parts) if parts else torch.empty(0)


@dataclass(frozen=True)
class FixedMask:
    """A mask that is trained no more, rescaled: key → r, float32; the same interface as a draw.

    Args:
        tensors: key → m / mean(m).
    """

    tensors: Mapping[str, Tensor]

    def block(self, key: str, start: int, stop: int) -> Tensor:
        """Scalars ``[start, stop)``; a copy."""
        return self.tensors[key].view(-1)[start:stop].clone()


def fix_mask(draw: MaskDraw) -> FixedMask:
    """One sample of the mask, rescaled per tensor and held in memory."""
    tensors = {}
    with torch.no_grad():
        for key, logits in draw.logits.items():
            mask = torch.empty(logits.shape, device=logits.device)
            for start, stop in mask_blocks(mask.numel()):
                mask.view(-1)[start:stop] = draw.block(key, start, stop)
            tensors[key] = mask.div_(mask.mean().clamp(min=torch.finfo(mask.dtype).tiny))
    return FixedMask(tensors)
