"""What merging by gradient returns: the merged model, exact, and how it was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from merging.adaptation import MergedWeights
from merging.blocks import Inputs, Range
from merging.coefficients import Coefficients
from merging.concrete import FixedMask
from merging.family import Family
from merging.job import merge_states
from merging.merger import Merger, MergeSettings
from merging.result import MergeResult


@dataclass(frozen=True)
class Step:
    """One step of training.

    Args:
        phase: ``mask`` or ``coefficients``.
        number: from 1 on, counted over all phases.
        losses: of each task, before the step.
        merge: merges with mask and coefficients as they are after the step; a relaxed mask by its expectation.
    """

    phase: str
    number: int
    losses: tuple[float, ...]
    merge: Callable[[], MergedWeights]


Observe = Callable[[Step], None]


@dataclass(frozen=True)
class AdaptedMerge:
    """A merged model found by gradient.

    Args:
        result: the merged model: computed in float64 from the models themselves, cast once, as every merge here.
        coefficients: group → λ of every task.
        density: key → expected share of kept scalars, mean of σ(x); ``None`` without a mask.
        losses: per step, the loss of every task before it.
        phases: per step, its phase.
    """

    result: MergeResult
    coefficients: dict[str, list[float]]
    density: dict[str, float] | None
    losses: list[tuple[float, ...]] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recorder:
    """Collects the losses of the steps, and tells an observer.

    Args:
        observe: called after every step; ``None`` for nobody.
        losses: filled.
        phases: filled.
    """

    observe: Observe | None = None
    losses: list[tuple[float, ...]] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def add(self, phase: str, losses: Sequence[float], merge: Callable[[], MergedWeights]) -> None:
        """Note one finished step."""
        self.losses.append(tuple(losses))
        self.phases.append(phase)
        if self.observe is not None:
            self.observe(Step(phase, len(self.losses), tuple(losses), merge))


def final_merge(
    method: str,
    family: Family,
    coefficients: Coefficients,
    mask: FixedMask | None,
    options: Mapping[str, Any],
) -> MergeResult:
    """θ_0 + r ∘ Σ_k λ_k τ_k from the models themselves: float64, cast once; running statistics as the mixture.

    Args:
        method: its name, for the provenance.
        family: the models.
        coefficients: λ.
        mask: r; ``None`` for all ones.
        options: of the method, for the provenance.

    Returns:
        The merged model, with every key of the pretrained one.

    Raises:
        ValueError: when a merged number does not fit its dtype.
    """
    settings = MergeSettings(batch_norm="mixture")
    base, models = family.sources
    given = {"coefficients": coefficients, "mask": mask, "options": dict(options)}
    done = merge_states(method, prepare_subspace, base, models, given, settings)
    own = {"options": {**options}, "coefficients_per_group": coefficients.describe()}
    return MergeResult(done.state, {**done.provenance, **own})


def prepare_subspace(
    inputs: Inputs, *, coefficients: Coefficients, mask: FixedMask | None, options: Mapping[str, Any]
) -> Merger:
    """The block of :func:`final_merge`; tensors without a coefficient are those that no model changed."""

    def merge(at: Range) -> Tensor:
        base = inputs.read_base(at, check=False)
        if at.key not in coefficients.columns:
            return base
        total = torch.zeros_like(base)
        for factor, model in zip(coefficients.of(at.key), inputs.models):
            total.add_(inputs.read(model, at, check=False).sub_(base), alpha=factor)
        if mask is not None:
            total.mul_(mask.tensors[at.key].view(-1)[at.start : at.stop].to("cpu", torch.float64))
        return base.add_(total)

    return Merger(merge)
