"""AdaMerging: merging coefficients found by the entropy of the merged model's predictions, without labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from merging.adaptation import BackwardMode, MergedWeights, UnlabelledTask, backward, merge_weights
from merging.adapted import AdaptedMerge, Observe, Recorder, final_merge
from merging.checks import number, whole_number
from merging.coefficients import Coefficients
from merging.concrete import FixedMask
from merging.family import Family, evaluating


def adamerging(
    family: Family,
    tasks: Sequence[UnlabelledTask],
    *,
    granularity: str = "tensor",
    scaling_factor: float = 0.3,
    steps: int = 1000,
    learning_rate: float = 1e-3,
    mode: BackwardMode = "together",
    observe: Observe | None = None,
) -> AdaptedMerge:
    """θ = θ_0 + Σ_k λ_k τ_k with λ from min Σ_tasks mean entropy (AdaMerging, Yang et al., ICLR 2024, section 3.2).

    Scope: one λ per task (``task``), or per task and layer. A layer is one parameter tensor, as in the authors' code
    (``tensor``), or a module with all its tensors (``layer``). Each step takes one batch of every task. Adam, betas
    0.9 and 0.999. Deviations: evaluation mode (no dropout, running statistics of BatchNorm fixed to the mixture of the
    models'), where the authors' Vision Transformers know no difference; coefficients are not clamped.

    Args:
        family: pretrained module and task vectors; not changed.
        tasks: one or more, usually one per model; their number and order need not be those of the models.
        granularity: ``task``, ``tensor`` or ``layer``.
        scaling_factor: λ at the start.
        steps: of Adam; 0 is task arithmetic.
        learning_rate: of Adam.
        mode: see :func:`merging.adaptation.backward`.
        observe: called after every step.

    Returns:
        The merged model, its coefficients and the losses.

    Raises:
        ValueError: when an option is out of range, or a loss is not finite or does not depend on the merged weights.
        TypeError: when an option has the wrong type.
    """
    coefficients = Coefficients.filled(
        scaling_factor, len(family.vectors), list(family.base), granularity, trained=True
    )
    recorder = Recorder(observe)
    with evaluating(family.module):
        train_coefficients(family, tasks, coefficients, None, steps, learning_rate, mode, recorder)
    options = {"scaling_factor": scaling_factor, "steps": steps, "learning_rate": learning_rate}
    result = final_merge("adamerging", family, coefficients, None, {"granularity": granularity, **options})
    return AdaptedMerge(result, coefficients.describe(), None, recorder.losses, recorder.phases)


def train_coefficients(
    family: Family,
    tasks: Sequence[UnlabelledTask],
    coefficients: Coefficients,
    mask: FixedMask | None,
    steps: int,
    learning_rate: float,
    mode: BackwardMode,
    recorder: Recorder,
) -> None:
    """Train the coefficients in place by Adam, the mask fixed.

    Args:
        family: pretrained module and task vectors.
        tasks: each gives one batch per step.
        coefficients: moved.
        mask: rescaled; ``None`` for all ones.
        steps: number of steps.
        learning_rate: of Adam.
        mode: see :func:`merging.adaptation.backward`.
        recorder: takes the losses.

    Raises:
        ValueError: see :func:`merging.adaptation.backward`; when steps or learning rate are negative.
    """
    whole_number("steps", steps)
    adam = torch.optim.Adam([coefficients.values], lr=number("learning_rate", learning_rate, low=0.0))
    memory: dict[str, torch.Tensor] = {}
    for _ in range(steps):
        adam.zero_grad()
        losses = coefficient_step(merge_weights(family, coefficients, mask, memory), tasks, mode)
        adam.step()
        recorder.add("coefficients", losses, lambda: merge_weights(family, coefficients, mask))


def coefficient_step(merged: MergedWeights, tasks: Sequence[UnlabelledTask], mode: BackwardMode) -> list[float]:
    """Losses of one batch of every task; their gradient is added to that of the coefficients."""

    def consume(key: str, gradient: torch.Tensor) -> None:
        merged.coefficients.add_gradient(key, merged.coefficient_gradient(key, gradient))

    return backward(merged, tasks, consume, mode)
