"""Concrete task arithmetic and Concrete AdaMerging: one mask for all tasks, learned through the merge itself.

Concrete subspace learning (Tang et al., 2023, arXiv 2312.06173, section 3, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from merging.adamerging import coefficient_step, train_coefficients
from merging.adaptation import BACKWARD_MODES, BackwardMode, MergedWeights, UnlabelledTask, backward, merge_weights
from merging.adapted import AdaptedMerge, Observe, Recorder, final_merge
from merging.checks import choice, number, whole_number
from merging.coefficients import Coefficients
from merging.concrete import MaskDraw, fix_mask, mask_density
from merging.differentiable import through_inner_step
from merging.family import Family, evaluating

FINAL_MASKS = ("concrete", "binary", "mean")


@dataclass(frozen=True)
class MaskSettings:
    """How a mask is learned.

    Args:
        steps: of Adam on the logits (the paper: 2000).
        learning_rate: of Adam (the paper: 1e-3).
        temperature: T of the relaxed mask (the paper: 0.5).
        initial_logits: x at the start; 0 keeps half.
        seed: of the samples.
        final_mask: what the merged model has: one more relaxed sample (``concrete``, as the authors' code), a binary
            one (``binary``), or the expectation σ(x) (``mean``), which is no sample and gives no noise to the weights.
        mode: see :func:`merging.adaptation.backward`.

    Raises:
        ValueError: when a value is out of range.
        TypeError: when a value has the wrong type.
    """

    steps: int = 2000
    learning_rate: float = 1e-3
    temperature: float = 0.5
    initial_logits: float = 0.0
    seed: int = 0
    final_mask: Literal["concrete", "binary", "mean"] = "concrete"
    mode: BackwardMode = "together"

    def __post_init__(self) -> None:
        whole_number("steps", self.steps)
        whole_number("seed", self.seed)
        number("learning_rate", self.learning_rate, low=0.0)
        number("initial_logits", self.initial_logits)
        if number("temperature", self.temperature, low=0.0) == 0.0:
            raise ValueError("option 'temperature': expected more than 0")
        choice("final_mask", self.final_mask, FINAL_MASKS)
        choice("mode", self.mode, BACKWARD_MODES)


def concrete_task_arithmetic(
    family: Family,
    tasks: Sequence[UnlabelledTask],
    *,
    scaling_factor: float = 0.3,
    settings: MaskSettings | None = None,
    observe: Observe | None = None,
) -> AdaptedMerge:
    """θ = θ_0 + λ Σ_k τ_k ∘ m / mean(m), m from min Σ_tasks mean entropy; λ does not change.

    Scope: one mask for all tasks, one mean per tensor. Every step draws a new relaxed mask, takes one batch of each
    task, and moves the logits by Adam.

    Args:
        family: pretrained module and task vectors; not changed.
        tasks: one or more.
        scaling_factor: λ.
        settings: of the mask.
        observe: called after every step.

    Returns:
        The merged model, the mask's density per tensor and the losses.

    Raises:
        ValueError: when an option is out of range, or a loss is not finite or does not depend on the merged weights.
        TypeError: when an option has the wrong type.
    """
    settings = settings or MaskSettings()
    coefficients = Coefficients.filled(scaling_factor, len(family.vectors), list(family.base))
    logits, recorder = _start(family, settings), Recorder(observe)
    step = _adam_per_tensor(logits, settings.learning_rate)
    memory: dict[str, Tensor] = {}
    with evaluating(family.module):
        for draw in range(settings.steps):
            drawn = _mask(logits, settings, draw)
            losses = _mask_step(merge_weights(family, coefficients, drawn, memory), tasks, settings.mode, step)
            recorder.add("mask", losses, lambda: merge_weights(family, coefficients, _expected(logits, settings)))
    options = {"scaling_factor": scaling_factor, **asdict(settings)}
    density = mask_density(logits)
    memory.clear()
    mask = fix_mask(_final(logits, settings))
    logits.clear()
    del step  # with Adam's moments, three tensors per parameter are free again
    result = final_merge("concrete_task_arithmetic", family, coefficients, mask, options)
    return AdaptedMerge(result, coefficients.describe(), density, recorder.losses, recorder.phases)


def concrete_adamerging(
    family: Family,
    tasks: Sequence[UnlabelledTask],
    *,
    granularity: str = "tensor",
    scaling_factor: float = 0.3,
    settings: MaskSettings | None = None,
    inner_learning_rate: float = 1.0,
    second_order: bool = False,
    coefficient_steps: int = 1000,
    coefficient_learning_rate: float = 1e-3,
    observe: Observe | None = None,
) -> AdaptedMerge:
    """Concrete AdaMerging, task-wise or layer-wise: a mask learned through a step of its coefficients.

    1. Each of ``settings.steps`` steps draws a relaxed mask. Inner level: from λ = ``scaling_factor``, one step down
       the gradient of the entropies, λ' = λ − η ∂L/∂λ. Upper level: the entropies of other batches, merged with λ' and
       the same mask, move the logits by Adam.
    2. A mask is fixed, and the coefficients are trained from ``scaling_factor`` by Adam, as in AdaMerging.

    Deviations: ``second_order=False`` takes λ' as a number at the upper level, as the authors' code does; ``True``
    differentiates through the inner step, which needs a second backward pass through the network and the memory of an
    ordinary autograd graph. The inner step is plain gradient descent with η, as in the paper's algorithm; the authors'
    code takes a step of Adam with that rate. Evaluation mode, as in :func:`merging.adamerging.adamerging`.

    Args:
        family: pretrained module and task vectors; not changed.
        tasks: one or more; each gives two batches per step of the mask.
        granularity: ``task``, ``tensor`` (the authors' layer-wise) or ``layer``.
        scaling_factor: λ at the start of every inner step and of phase 2.
        settings: of the mask.
        inner_learning_rate: η.
        second_order: whether the upper level sees how λ' depends on the mask.
        coefficient_steps: of phase 2.
        coefficient_learning_rate: of phase 2.
        observe: called after every step of both phases.

    Returns:
        The merged model, coefficients, density and losses.

    Raises:
        ValueError: when an option is out of range, or a loss is not finite or does not depend on the merged weights.
        TypeError: when an option has the wrong type.
    """
    settings = settings or MaskSettings()
    start = Coefficients.filled(scaling_factor, len(family.vectors), list(family.base), granularity, trained=True)
    logits, recorder = _start(family, settings), Recorder(observe)
    bilevel = _SecondOrder if second_order else _FirstOrder
    move = bilevel(family, tasks, start, settings, number("inner_learning_rate", inner_learning_rate, low=0.0))
    step = _adam_per_tensor(logits, settings.learning_rate)
    with evaluating(family.module):
        for draw in range(settings.steps):
            losses = move(_mask(logits, settings, draw), step)
            recorder.add("mask", losses, lambda: merge_weights(family, start, _expected(logits, settings)))
        density = mask_density(logits)
        move.memory.clear()
        mask = fix_mask(_final(logits, settings))
        logits.clear()
        del step  # with Adam's moments, three tensors per parameter are free again
        coefficients = start.replaced(start.values.detach().clone().requires_grad_())
        rate = coefficient_learning_rate
        train_coefficients(family, tasks, coefficients, mask, coefficient_steps, rate, settings.mode, recorder)
    options = {
        **{"granularity": granularity, "scaling_factor": scaling_factor, **asdict(settings)},
        **{"inner_learning_rate": inner_learning_rate, "second_order": second_order},
        **{"coefficient_steps": coefficient_steps, "coefficient_learning_rate": coefficient_learning_rate},
    }
    result = final_merge("concrete_adamerging", family, coefficients, mask, options)
    return AdaptedMerge(result, coefficients.describe(), density, recorder.losses, recorder.phases)


@dataclass(frozen=True)
class _FirstOrder:
    """Both levels of one step; at the upper one λ' is a number."""

    family: Family
    tasks: Sequence[UnlabelledTask]
    start: Coefficients
    settings: MaskSettings
    rate: float
    memory: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, mask: MaskDraw, step: Callable[[str, Tensor], None]) -> list[float]:
        self.start.values.grad = None
        coefficient_step(merge_weights(self.family, self.start, mask, self.memory), self.tasks, self.settings.mode)
        moved = self.start.replaced(self.start.values.detach() - self.rate * self.start.values.grad)
        return _mask_step(merge_weights(self.family, moved, mask, self.memory), self.tasks, self.settings.mode, step)


@dataclass(frozen=True)
class _SecondOrder(_FirstOrder):
    """Both levels of one step; the upper one differentiates through the inner step."""

    def __call__(self, mask: MaskDraw, step: Callable[[str, Tensor], None]) -> list[float]:
        losses, gradients = through_inner_step(self.family, self.tasks, self.start, mask, self.rate)
        for key, gradient in gradients.items():
            step(key, gradient)
        return losses


def _mask_step(
    merged: MergedWeights, tasks: Sequence[UnlabelledTask], mode: BackwardMode, step: Callable[[str, Tensor], None]
) -> list[float]:
    """One step of the logits, tensor by tensor."""
    return backward(merged, tasks, lambda key, gradient: step(key, merged.mask_gradient(key, gradient)), mode)


def _start(family: Family, settings: MaskSettings) -> dict[str, Tensor]:
    fill = float(settings.initial_logits)
    return {key: torch.full_like(base, fill).contiguous() for key, base in family.base.items()}


def _mask(logits: Mapping[str, Tensor], settings: MaskSettings, draw: int) -> MaskDraw:
    return MaskDraw(logits, settings.temperature, settings.seed, draw)


def _expected(logits: Mapping[str, Tensor], settings: MaskSettings) -> MaskDraw:
    return MaskDraw(logits, settings.temperature, settings.seed, 0, "mean")


def _final(logits: Mapping[str, Tensor], settings: MaskSettings) -> MaskDraw:
    return MaskDraw(logits, settings.temperature, settings.seed, settings.steps, settings.final_mask)


def _adam_per_tensor(logits: Mapping[str, Tensor], rate: float) -> Callable[[str, Tensor], None]:
    """Adam, one tensor at a time, so that no gradient of the whole model is held."""
    adams = {key: torch.optim.Adam([tensor], lr=rate, fused=tensor.numel() > 0) for key, tensor in logits.items()}
    for key, tensor in logits.items():  # its memory now, and not in the middle of the first backward pass
        moments = {name: torch.zeros_like(tensor) for name in ("exp_avg", "exp_avg_sq")}
        adams[key].state[tensor] = {"step": torch.tensor(0.0, device=tensor.device), **moments}

    def step(key: str, gradient: Tensor) -> None:
        logits[key].grad = gradient
        adams[key].step()
        logits[key].grad = None

    return step
