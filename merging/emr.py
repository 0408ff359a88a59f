"""EMR: elect one unified task vector, mask it and rescale it per task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.blocks import Inputs, Range
from merging.checks import number
from merging.job import merge_states
from merging.merger import Merger, MergeSettings
from merging.plan import plan_merge
from merging.result import MergeResult, State
from merging.sources import as_source


@dataclass(frozen=True)
class EmrParts:
    """What EMR stores for a set of tasks.

    Args:
        unified: name → unified task vector, float64, one for all tasks.
        masks: per task, name → boolean mask: where the task's own vector has the unified sign.
        rescalers: per task, the number that restores the mean magnitude of its task vector.
    """

    unified: dict[str, Tensor]
    masks: tuple[dict[str, Tensor], ...]
    rescalers: tuple[float, ...]


def emr_merging(
    base: State,
    models: Sequence[State],
    *,
    task: int | None = None,
    scaling_factor: float = 1.0,
    settings: MergeSettings | None = None,
) -> MergeResult:
    """θ_0 + λ τ_uni, or θ_0 + λ_k M_k ∘ τ_uni for one task (EMR-Merging, Huang et al., NeurIPS 2024, section 3.2).

    Scope: signs, magnitudes and masks per scalar; rescalers over the whole model. Steps:
    1. Elect: per scalar the sign of Σ_k τ_k; the unified value is the largest |τ_k| among those of that sign.
    2. Mask: M_k = 1 where τ_k has the unified sign.
    3. Rescale: λ_k = Σ|τ_k| / Σ|M_k ∘ τ_uni| over all scalars; 1 where M_k ∘ τ_uni is 0 throughout.
    Tie rule: a sum of exactly 0 elects the negative sign, as in the authors' code. Deviations: the authors' code sums
    per-tensor means in step 3, the paper (followed here) sums scalars; EMR proper keeps one model per task, so that the
    merged model without ``task``, and its ``scaling_factor``, are ours.

    Args:
        base: θ_0, name → tensor.
        models: θ_k, at least one.
        task: index of the task (from 0) whose model is rebuilt; ``None`` applies the unified vector, unmasked.
        scaling_factor: λ of the unified model; must be 1 with ``task``, whose rescaler is computed.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model. :func:`emr_parts` gives the unified vector, the masks and the rescalers.

    Raises:
        ValueError: when a tensor does not fit or is not finite, or an option is out of range.
        TypeError: when a model is no mapping of tensors, or an option has the wrong type.
    """
    return merge_states("emr", prepare_emr, base, models, {"task": task, "scaling_factor": scaling_factor}, settings)


def emr_parts(base: State, models: Sequence[State]) -> EmrParts:
    """The unified vector, masks and rescalers of :func:`emr_merging`, all in memory.

    Args:
        base: θ_0, name → tensor.
        models: θ_k, at least one, all keys and shapes as in the base.

    Returns:
        The parts, over the floating-point tensors.

    Raises:
        ValueError: when a tensor does not fit or is not finite.
    """
    ancestor = as_source(base, "base")
    sources = tuple(as_source(model, f"model {index}") for index, model in enumerate(models, 1))
    plan = plan_merge(ancestor, sources)
    inputs = Inputs(ancestor, sources, plan, plan.merged)
    unified = {key: torch.empty(plan.specs[key].numel, dtype=torch.float64) for key in plan.merged}
    masks = [{key: torch.empty(len(flat), dtype=torch.bool) for key, flat in unified.items()} for _ in models]
    ranges = inputs.ranges(plan.merged)
    for at, (elected, vectors) in inputs.each(lambda at: _elect(inputs.task_vectors(at)), ranges, "elect"):
        unified[at.key][at.start : at.stop] = elected
        for mask, vector in zip(masks, vectors):
            mask[at.key][at.start : at.stop] = _agrees(vector, elected)
    shaped = {key: flat.view(plan.specs[key].shape) for key, flat in unified.items()}
    shaped_masks = [{key: flat.view(plan.specs[key].shape) for key, flat in mask.items()} for mask in masks]
    return EmrParts(shaped, tuple(shaped_masks), tuple(_rescalers(inputs)))


def prepare_emr(inputs: Inputs, *, task: int | None, scaling_factor: float) -> Merger:
    """See :func:`emr_merging`."""
    factor = number("scaling_factor", scaling_factor)
    if task is None:
        return Merger(lambda at: inputs.read_base(at).add_(_elect(inputs.task_vectors(at))[0].mul_(factor)))
    if isinstance(task, bool) or not isinstance(task, int) or not 0 <= task < len(inputs.models):
        raise ValueError(f"option 'task': expected an index from 0 to {len(inputs.models) - 1}, got {task!r}")
    if factor != 1.0:
        raise ValueError("option 'scaling_factor' must be 1 with 'task': the rescaler of a task is computed")
    rescaler = _rescalers(inputs)[task]

    def merge(at: Range) -> Tensor:
        elected, vectors = _elect(inputs.task_vectors(at))
        return inputs.read_base(at).add_(_masked(elected, vectors[task]).mul_(rescaler))

    return Merger(merge, report=lambda: {"rescaler": rescaler})


def _elect(vectors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The unified vector of one block, and the task vectors it came from."""
    total = vectors[0].clone()
    for vector in vectors[1:]:
        total += vector
    sign = torch.where(total > 0, 1.0, -1.0).to(torch.float64)
    largest = torch.zeros_like(total)
    for vector in vectors:
        largest = torch.maximum(largest, vector * sign)
    return largest.mul_(sign), vectors


def _agrees(vector: Tensor, elected: Tensor) -> Tensor:
    return vector.sign() * elected.sign() > 0  # the product of the values themselves could underflow


def _masked(elected: Tensor, vector: Tensor) -> Tensor:
    return elected * _agrees(vector, elected)


def _rescalers(inputs: Inputs) -> list[float]:
    def magnitudes(at: Range) -> list[float]:
        elected, vectors = _elect(inputs.task_vectors(at))
        own = [vector.abs().sum().item() for vector in vectors]
        return own + [_masked(elected, vector).abs_().sum().item() for vector in vectors]

    rows = inputs.sums(magnitudes, inputs.keys, "rescale").values()
    totals = [math.fsum(column) for column in zip(*rows)] or [0.0] * (2 * len(inputs.models))
    own, masked = totals[: len(inputs.models)], totals[len(inputs.models) :]
    return [a / b if b > 0.0 else 1.0 for a, b in zip(own, masked)]
