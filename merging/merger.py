"""What a method prepares, and how it is run over models in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from merging.blocks import Inputs, Progress, Range
from merging.checks import choice
from merging.layers import is_statistic, is_variance
from merging.plan import POLICIES, Policy, plan_merge
from merging.result import MergeResult, State
from merging.sources import StateSource, TensorSource

BATCH_NORM_POLICIES = ("method", "mixture")


@dataclass(frozen=True)
class MergeSettings:
    """What every method is asked in the same words.

    Args:
        policy: what happens to tensors that do not fit: see :func:`merging.plan.plan_merge`.
        output_dtype: dtype of the merged tensors, such as ``torch.bfloat16`` or ``"bfloat16"``; ``None`` keeps each
            tensor's dtype in the base.
        batch_norm: running means and variances by the method itself (``method``), or as the statistics of the mixture
            of the models' activations (``mixture``): see :mod:`merging.batch_norm`.
        workers: number of threads; ``None`` chooses.

    Raises:
        ValueError: when a value is not allowed.
    """

    policy: Policy = "error"
    output_dtype: torch.dtype | str | None = None
    batch_norm: Literal["method", "mixture"] = "method"
    workers: int | None = None

    def __post_init__(self) -> None:
        choice("policy", self.policy, POLICIES)
        choice("batch_norm", self.batch_norm, BATCH_NORM_POLICIES)
        if self.workers is not None and (isinstance(self.workers, bool) or not isinstance(self.workers, int)):
            raise TypeError(f"option 'workers': expected a whole number, got {self.workers!r}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"option 'workers': expected at least 1, got {self.workers}")
        object.__setattr__(self, "output_dtype", _floating_dtype(self.output_dtype))

    def describe(self) -> dict[str, Any]:
        """The settings that decide the result, JSON-serialisable."""
        dtype = None if self.output_dtype is None else str(self.output_dtype).removeprefix("torch.")
        return {"policy": self.policy, "output_dtype": dtype, "batch_norm": self.batch_norm}


@dataclass(frozen=True)
class Merger:
    """A method made ready for its models.

    Args:
        merge: one block of the merged model, float64, from the range alone: blocks may come in any order, from
            several threads.
        integers_from: whose integer tensors the output has.
        coefficients: see :class:`MergeResult`.
        weights: key → convex weights of the models, for a mixture of statistics; ``None`` for equal ones.
        report: more for the provenance; called after the last block.
        unresolved: called after the last block: the blocks to be merged once more, now with what all of them taught.
    """

    merge: Callable[[Range], Tensor]
    integers_from: Literal["base", "last"] = "base"
    coefficients: dict[str, float] | None = None
    weights: Callable[[str], Sequence[float]] | None = None
    report: Callable[[], dict[str, Any]] = field(default=dict)
    unresolved: Callable[[], Sequence[Range]] = field(default=tuple)


Prepare = Callable[..., Merger]


@dataclass(frozen=True)
class Merge:
    """One method, its models and its settings, ready to run.

    Args:
        inputs: the models.
        merger: the prepared method.
        settings: how to merge.
        method: name of the method.
        options: its options, JSON-serialisable.
    """

    inputs: Inputs
    merger: Merger
    settings: MergeSettings
    method: str
    options: dict[str, Any]

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Key → dtype of each merged tensor of the output."""
        plan = self.inputs.plan
        return {key: self.settings.output_dtype or plan.specs[key].dtype for key in plan.merged}

    def blocks(self) -> Iterator[tuple[Range, Tensor]]:
        """All blocks of the merged tensors; a block may come a second time, then the second is right."""
        ranges: Sequence[Range] = self.inputs.ranges(self.inputs.plan.merged)
        yield from zip(ranges, self.inputs.each(self.block, ranges, "merge"))
        ranges = self.merger.unresolved()
        yield from zip(ranges, self.inputs.each(self.block, ranges, "resolve"))

    def copies(self) -> Iterator[tuple[str, TensorSource]]:
        """Tensors that are copied as they are, and whose they are."""
        plan = self.inputs.plan
        integers = self.inputs.base if self.merger.integers_from == "base" else self.inputs.models[-1]
        yield from ((key, integers) for key in plan.copied)
        yield from ((key, self.inputs.base) for key in plan.kept)

    def block(self, at: Range) -> Tensor:
        """One block of the output, cast once to its dtype.

        Raises:
            ValueError: when a variance became negative or a number does not fit the output dtype.
        """
        merged = self.merger.merge(at)
        if is_variance(at.key):
            self._check_variance(at, merged)
        cast = merged.to(self.dtypes[at.key])
        back = cast.to(torch.float64)
        if not math.isfinite(back.sum().item()) and not back.isfinite().all():
            raise ValueError(f"'{at.key}': the merged value {merged.abs().max().item():g} does not fit {cast.dtype}")
        return cast

    def provenance(self) -> dict[str, Any]:
        """How the output came about, JSON-serialisable; complete after the last block."""
        plan = self.inputs.plan
        return {
            "method": self.method,
            "options": self.options,
            **self.settings.describe(),
            "base": self.inputs.base.name,
            "models": [model.name for model in self.inputs.models],
            "tensors_merged": len(plan.merged),
            "scalars_merged": plan.scalars,
            "tensors_copied": len(plan.copied),
            "kept_from_base": list(plan.kept),
            "left_out": list(plan.left_out),
            "tied": dict(plan.tied),
            **self.merger.report(),
        }

    def _check_variance(self, at: Range, merged: Tensor) -> None:
        if (merged >= 0).all():
            return
        inputs = self.inputs
        if all((inputs.read(model, at) >= 0).all() for model in (inputs.base, *inputs.models)):
            raise ValueError(
                f"'{at.key}': {self.method} makes this variance negative ({merged.min().item():g}); "
                "merge BatchNorm statistics with batch_norm='mixture'"
            )


def prepare_merge(
    method: str,
    prepare: Prepare,
    base: TensorSource,
    models: Sequence[TensorSource],
    options: Mapping[str, Any],
    settings: MergeSettings,
    progress: Progress | None = None,
) -> Merge:
    """Plan a merge and let the method look at its models.

    Args:
        method: name of the method, for messages and provenance.
        prepare: the method: inputs and options in, merger out.
        base: the common ancestor.
        models: the models to merge, in order.
        options: the method's options.
        settings: what every method is asked.
        progress: see :class:`merging.blocks.Inputs`.

    Returns:
        The merge, ready to run.

    Raises:
        ValueError: when something does not fit or an option is out of range.
    """
    from merging.batch_norm import with_mixture

    plan = plan_merge(base, models, settings.policy)
    mixture = settings.batch_norm == "mixture"
    keys = tuple(key for key in plan.merged if not (mixture and is_statistic(key)))
    inputs = Inputs(base, tuple(models), plan, keys, settings.workers, progress)
    merger = prepare(inputs, **options)
    if mixture:
        merger = replace(merger, merge=with_mixture(inputs, merger))
    return Merge(inputs, merger, settings, method, describe_options(options))


def merge_states(
    method: str,
    prepare: Prepare,
    base: State | TensorSource,
    models: Sequence[State | TensorSource],
    options: Mapping[str, Any],
    settings: MergeSettings | None = None,
) -> MergeResult:
    """Merge into memory.

    Args:
        method: name of the method.
        prepare: the method.
        base: mapping or source of the common ancestor.
        models: mappings or sources of the models, in order.
        options: the method's options.
        settings: what every method is asked.

    Returns:
        The merged model, on the devices of the base.

    Raises:
        ValueError: when something does not fit or an option is out of range.
        TypeError: when a model is no mapping of tensors.
    """
    sources = [as_source(model, f"model {number}") for number, model in enumerate(_listed(models), 1)]
    merge = prepare_merge(method, prepare, as_source(base, "base"), sources, options, settings or MergeSettings())
    state = _collect(merge)
    return MergeResult(state, merge.provenance(), merge.merger.coefficients)


def as_source(model: State | TensorSource, name: str) -> TensorSource:
    """A mapping as a source; a source as it is.

    Raises:
        TypeError: when it is neither.
    """
    if isinstance(model, Mapping):
        return StateSource(model, name)
    if isinstance(model, (str, Path)) or not hasattr(model, "specs"):
        raise TypeError(f"{name}: expected a mapping of tensors, got {type(model).__name__}")
    return model


def describe_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON: numbers, texts and lists as they are, models by their number of tensors."""
    return {name: _describe(value) for name, value in options.items()}


def _describe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return f"mapping of {len(value)} tensors"
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _listed(models: Sequence[State | TensorSource]) -> list[State | TensorSource]:
    if isinstance(models, (Mapping, str)):
        raise TypeError("expected a sequence of models, got one model; write [model]")
    return list(models)


def _collect(merge: Merge) -> dict[str, Tensor]:
    base, plan = merge.inputs.base, merge.inputs.plan
    flat = {key: torch.empty(plan.specs[key].numel, dtype=dtype) for key, dtype in merge.dtypes.items()}
    for at, block in merge.blocks():
        flat[at.key][at.start : at.stop] = block
    for key, source in merge.copies():
        flat[key] = source.read(key, 0, plan.specs[key].numel).clone()
    own = {key: _placed(base, key, tensor.view(plan.specs[key].shape)) for key, tensor in flat.items()}
    return {key: own[plan.tied.get(key, key)] for key in plan.specs}


def _placed(base: TensorSource, key: str, tensor: Tensor) -> Tensor:
    return tensor.to(base.state[key].device) if isinstance(base, StateSource) else tensor


def _floating_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"option 'output_dtype': expected a floating-point dtype such as bfloat16, got {dtype!r}")
    return dtype
