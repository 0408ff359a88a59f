"""TIES: trim, elect sign, disjoint merge."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from merging.blocks import Inputs, Range
from merging.checks import choice, number
from merging.job import merge_states
from merging.merger import Merger, MergeSettings
from merging.order_statistics import Vectors, kth_smallest_magnitudes
from merging.result import MergeResult, State

MergeFunction = Literal["mean", "sum", "max"]
Scope = Literal["model", "tensor"]


def ties_merging(
    base: State,
    models: Sequence[State],
    *,
    density: float = 0.2,
    scaling_factor: float = 1.0,
    merge_function: MergeFunction = "mean",
    scope: Scope = "model",
    settings: MergeSettings | None = None,
) -> MergeResult:
    """θ_0 + λ τ by TIES (Yadav et al., NeurIPS 2023, arXiv 2306.01708, section 4), as the authors' code computes it.

    Scope: each task vector is one long vector of all d floating-point scalars, tied tensors counted once; one
    threshold and one majority sign for the whole model. Steps:
    1. Trim: keep the entries of τ_k whose magnitude is at least the k-th smallest, k = d − int(d·density). Entries
       equal to the threshold are kept, so that usually int(d·density) + 1 remain. Density 1 keeps all, density 0 the
       largest magnitude.
    2. Elect: per entry the sign of the sum of the trimmed values, added in the order of the models. Tie rule: where
       the sum is exactly 0, the sign of the sum of all elected signs.
    3. Disjoint merge: per entry over the trimmed values of the elected sign. ``mean`` divides their sum by their
       number, at least 1; ``sum`` does not; ``max`` is the largest magnitude with the elected sign. Where even the
       majority sign is 0, ``mean`` and ``sum`` take the negative values and ``max`` gives 0, as the authors' code does.
    4. θ = θ_0 + λ τ. λ = 1 without validation data.

    Deviations: density 1, which the authors' ``kthvalue(0)`` refuses, keeps all; arithmetic is float64 rather than the
    stored dtype. ``scope="tensor"``, which other libraries have as their only way, trims each tensor by its own
    threshold and takes the majority sign per tensor: values and even signs differ.

    Args:
        base: θ_0, name → tensor.
        models: θ_k, at least one.
        density: kept fraction, from 0 to 1.
        scaling_factor: λ.
        merge_function: ``mean``, ``sum`` or ``max``.
        scope: ``model`` (the authors') or ``tensor``.
        settings: policy, output dtype, BatchNorm, threads.

    Returns:
        The merged model; the provenance holds the thresholds and the majority sign (scope ``model``).

    Raises:
        ValueError: when a tensor does not fit or is not finite, or an option is out of range.
        TypeError: when a model is no mapping of tensors, or an option has the wrong type.
    """
    options = {
        "density": density,
        "scaling_factor": scaling_factor,
        "merge_function": merge_function,
        "scope": scope,
    }
    return merge_states("ties", prepare_ties, base, models, options, settings)


def prepare_ties(
    inputs: Inputs, *, density: float, scaling_factor: float, merge_function: MergeFunction, scope: Scope
) -> Merger:
    """See :func:`ties_merging`."""
    return Ties(density, scaling_factor, merge_function, scope).prepare(inputs, inputs.task_vectors)


@dataclass(frozen=True)
class Ties:
    """The options of TIES, also for task vectors that another method has changed before.

    Args:
        density: see :func:`ties_merging`.
        scaling_factor: λ.
        merge_function: how the values of the elected sign are joined.
        scope: what one threshold is for.

    Raises:
        ValueError: when an option is out of range.
        TypeError: when an option has the wrong type.
    """

    density: float
    scaling_factor: float
    merge_function: str = "mean"
    scope: str = "model"

    def __post_init__(self) -> None:
        number("density", self.density, low=0.0, high=1.0)
        number("scaling_factor", self.scaling_factor)
        choice("merge_function", self.merge_function, ("mean", "sum", "max"))
        choice("scope", self.scope, ("model", "tensor"))

    def prepare(self, inputs: Inputs, vectors: Vectors) -> Merger:
        """Find the thresholds, then merge block by block.

        Args:
            inputs: the models.
            vectors: the task vectors of a range; new tensors.

        Returns:
            The merger.
        """
        groups = {key: self._group(key) for key in inputs.plan.merged}
        thresholds = self._thresholds(inputs, vectors)
        signs = _Signs(groups)

        def merge(at: Range) -> Tensor:
            trimmed = [trim(vector, limit) for vector, limit in zip(vectors(at), thresholds[groups[at.key]])]
            signs_of_sums = elect_sign(trimmed)
            undecided = signs_of_sums == 0
            elected = torch.where(undecided, signs.majority(at.key), signs_of_sums)
            merged = disjoint_merge(trimmed, elected, self.merge_function)
            signs.count(at, signs_of_sums, undecided, merged)
            return inputs.read_base(at).add_(merged.mul_(self.scaling_factor))

        return Merger(merge, report=lambda: self._report(thresholds, signs), unresolved=signs.close)

    def _group(self, key: str) -> str:
        return key if self.scope == "tensor" else ""

    def _thresholds(self, inputs: Inputs, vectors: Vectors) -> dict[str, list[float]]:
        groups: dict[str, list[str]] = {}
        for key in inputs.keys:
            groups.setdefault(self._group(key), []).append(key)
        return {name: thresholds(inputs, vectors, keys, self.density) for name, keys in groups.items()}

    def _report(self, limits: dict[str, list[float]], signs: _Signs) -> dict[str, Any]:
        if self.scope == "tensor":
            return {}
        return {"thresholds": limits.get("", []), "majority_sign": signs.totals_sign("")}


def thresholds(inputs: Inputs, vectors: Vectors, keys: Iterable[str], density: float) -> list[float]:
    """The smallest magnitude that trimming keeps, per task vector; 0 where it keeps all.

    Args:
        inputs: the models.
        vectors: the task vectors of a range.
        keys: the tensors that one threshold is for.
        density: kept fraction.

    Returns:
        One threshold per model.
    """
    keys = list(keys)
    scalars = sum(inputs.plan.specs[key].numel for key in keys)
    rank = scalars - int(scalars * density)
    if rank == 0:
        return [0.0] * len(inputs.models)
    return kth_smallest_magnitudes(inputs, vectors, keys, [rank] * len(inputs.models))


def trim(vector: Tensor, threshold: float) -> Tensor:
    """Set entries of a magnitude below the threshold to 0; entries equal to it stay.

    Args:
        vector: float64, any shape.
        threshold: ≥ 0.

    Returns:
        The trimmed vector; the same tensor where nothing can be below.
    """
    if threshold == 0.0:
        return vector
    # hardshrink keeps |x| > λ; λ is the next smaller number, so that |x| ≥ threshold stays, in one operation.
    return functional.hardshrink(vector, math.nextafter(threshold, 0.0))


def elect_sign(trimmed: Sequence[Tensor]) -> Tensor:
    """Sign of the sum over the models, added in their order: −1, 0 or 1 per entry.

    Args:
        trimmed: at least one trimmed task vector, all of one shape.

    Returns:
        A tensor of that shape.
    """
    total = trimmed[0].clone()
    for vector in trimmed[1:]:
        total += vector
    return total.sign_()


def disjoint_merge(trimmed: Sequence[Tensor], elected: Tensor, merge_function: str) -> Tensor:
    """Join per entry the trimmed values that have the elected sign.

    Args:
        trimmed: trimmed task vectors, all of one shape.
        elected: −1, 0 or 1 per entry; 0 counts as −1, except that ``max`` gives 0.
        merge_function: ``mean``, ``sum`` or ``max``.

    Returns:
        The merged task vector, of that shape; 0 where no value agrees.
    """
    side = (elected - 0.5).sign_()  # 1 for positive, −1 for negative and undecided
    agreeing = ((vector * side).relu_() for vector in trimmed)  # magnitudes, 0 where a value disagrees
    first = next(agreeing)
    if merge_function == "max":
        for magnitude in agreeing:
            first = torch.maximum(first, magnitude)
        return first.mul_(elected)
    total, count = first, first.sign()
    for magnitude in agreeing:
        total += magnitude
        count += magnitude.sign_()
    if merge_function == "mean":
        total /= count.clamp_(min=1.0)
    return total.mul_(side)


class _Signs:
    """Sums of elected signs, and the blocks that cannot be finished without them.

    Only an entry whose non-zero values cancel exactly needs the majority sign. Instead of a pass over all models to
    learn it first, blocks that hold such an entry are merged a second time at the end.
    """

    def __init__(self, groups: dict[str, str]) -> None:
        self._groups = groups
        self._totals: dict[str, int] = {}
        self._open: list[Range] = []
        self._closed = False
        self._lock = threading.Lock()

    def count(self, at: Range, signs_of_sums: Tensor, undecided: Tensor, merged: Tensor) -> None:
        """Take one block into account, during the first round only.

        Args:
            at: the block.
            signs_of_sums: −1, 0 or 1 per entry.
            undecided: where they are 0.
            merged: the merged block, by :meth:`majority` where undecided.
        """
        if self._closed:
            return
        total = int(signs_of_sums.sum().item())
        # Values that add up to exactly 0 are all 0, and then any sign merges them to 0, or have both signs.
        cancelled = bool((undecided & (merged != 0)).any())
        with self._lock:
            group = self._groups[at.key]
            self._totals[group] = self._totals.get(group, 0) + total
            if cancelled:
                self._open.append(at)

    def majority(self, key: str) -> float:
        """Sign of the sum of all elected signs; −1, under which a cancelled entry shows, until it is known."""
        return float(self.totals_sign(self._groups[key])) if self._closed else -1.0

    def totals_sign(self, group: str) -> int:
        """Sign of the sum of the elected signs of one group so far."""
        total = self._totals.get(group, 0)
        return (total > 0) - (total < 0)

    def close(self) -> list[Range]:
        """End the first round; the blocks to be merged again."""
        self._closed = True
        return sorted(self._open)
