"""Task arithmetic: the base plus the scaled sum of the task vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from merging.blocks import Inputs, Range
from merging.checks import number
from merging.job import merge_states
from merging.merger import Merger, MergeSettings
from merging.result import MergeResult, State


def task_arithmetic(
    base: State,
    models: Sequence[State],
    *,
    scaling_factor: float = 0.3,
    settings: MergeSettings | None = None,
) -> MergeResult:
    """θ = θ_0 + λ Σ_k (θ_k − θ_0) (Ilharco et al., ICLR 2023, section 2; λ = 0.3 is theirs for eight CLIP models).

    Scope: each scalar by itself. Steps: difference, sum over the models in order, scale, add. A sum, not a mean: no
    divisor. No ties can occur. BatchNorm statistics are no weights, but take part like any tensor unless
    ``settings.batch_norm`` says otherwise; a variance that would become negative is refused.

    Args:
        base: θ_0, name → tensor.
        models: θ_k, at least one.
        scaling_factor: λ, any finite number; negative to forget a task.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model.

    Raises:
        ValueError: when a tensor does not fit or is not finite, or λ is not finite.
        TypeError: when a model is no mapping of tensors, or λ no number.
    """
    options = {"scaling_factor": scaling_factor}
    return merge_states("task_arithmetic", prepare_task_arithmetic, base, models, options, settings)


def prepare_task_arithmetic(inputs: Inputs, *, scaling_factor: float) -> Merger:
    """See :func:`task_arithmetic`."""
    return Merger(scaled_sum(inputs, scaling_factor, lambda vector, model, at: vector))


def scaled_sum(
    inputs: Inputs, scaling_factor: float, change: Callable[[Tensor, int, Range], Tensor]
) -> Callable[[Range], Tensor]:
    """θ_0 + λ Σ_k change(τ_k) as a function of the block.

    Args:
        inputs: the models.
        scaling_factor: λ.
        change: takes a block of a task vector, the model's index and the range; may change the block in place.

    Returns:
        A function from a range to the merged block.

    Raises:
        ValueError: when λ is not finite.
    """
    factor = number("scaling_factor", scaling_factor)

    def merge(at: Range) -> Tensor:
        base = inputs.read_base(at, check=False)
        total: Tensor | None = None
        # One model at a time: memory does not grow with their number.
        for index, model in enumerate(inputs.models):
            vector = change(inputs.read(model, at, check=False).sub_(base), index, at)
            total = vector if total is None else total.add_(vector)
        assert total is not None  # the plan refuses zero models
        return base.add_(total.mul_(factor))

    return merge
