"""One merge: planned, prepared and run, into memory or block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from merging.batch_norm import with_mixture
from merging.blocks import Inputs, Progress, Range
from merging.layers import is_statistic, is_variance
from merging.merger import Merger, MergeSettings, Prepare
from merging.plan import plan_merge
from merging.result import MergeResult, State
from merging.sources import StateSource, TensorSource, TensorSpec, as_source


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

    def specs(self) -> dict[str, TensorSpec]:
        """Key → dtype and shape of every tensor of the output, tied ones included, in its order."""
        plan, dtypes = self.inputs.plan, self.dtypes
        own = {key: replace(spec, dtype=dtypes.get(key, spec.dtype)) for key, spec in plan.specs.items()}
        return {key: own[plan.tied.get(key, key)] for key in plan.specs}

    def run(self, sink: Callable[[Range, Tensor], None]) -> None:
        """Compute every tensor of the output, of tied ones the first.

        Args:
            sink: takes each block in its output dtype, from several threads and in any order; a block may come a
                second time, and then the second is right.

        Raises:
            ValueError: when an input holds NaN or infinity, a variance becomes negative, or a number does not fit the
                output dtype.
        """
        inputs = self.inputs
        ranges: Sequence[Range] = inputs.ranges(inputs.plan.merged)
        for phase in ("merge", "resolve"):
            for _ in inputs.each(lambda at: sink(at, self.block(at)), ranges, phase):
                pass
            ranges = self.merger.unresolved() if phase == "merge" else ()
        integers = inputs.base if self.merger.integers_from == "base" else inputs.models[-1]
        for keys, source in ((inputs.plan.copied, integers), (inputs.plan.kept, inputs.base)):
            for at in inputs.ranges(keys):
                sink(at, _checked_copy(inputs, source, at))

    def block(self, at: Range) -> Tensor:
        """One block of the output, cast once to its dtype.

        Raises:
            ValueError: when a variance became negative or a number does not fit the output dtype.
        """
        merged = self.merger.merge(at)
        if is_variance(at.key):
            self._check_variance(at, merged)
        cast = merged.to(self.dtypes[at.key])
        if not _finite(cast):
            self.inputs.read_base(at)
            self.inputs.read_models(at)  # one of them says which model is to blame
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
    plan = plan_merge(base, models, settings.policy)
    mixture = settings.batch_norm == "mixture"
    keys = tuple(key for key in plan.merged if not (mixture and is_statistic(key)))
    inputs = Inputs(base, tuple(models), plan, keys, settings.workers, progress)
    try:
        merger = prepare(inputs, **options)
    except OverflowError:
        raise ValueError(f"{method}: the summed magnitudes of the models are larger than any float") from None
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
    progress: Progress | None = None,
) -> MergeResult:
    """Merge into memory.

    Args:
        method: name of the method.
        prepare: the method.
        base: mapping or source of the common ancestor.
        models: mappings or sources of the models, in order.
        options: the method's options.
        settings: what every method is asked.
        progress: see :class:`merging.blocks.Inputs`.

    Returns:
        The merged model, on the devices of the base.

    Raises:
        ValueError: when something does not fit or an option is out of range.
        TypeError: when a model is no mapping of tensors.
    """
    sources = [as_source(model, f"model {number}") for number, model in enumerate(_listed(models), 1)]
    settings = settings or MergeSettings()
    merge = prepare_merge(method, prepare, as_source(base, "base"), sources, options, settings, progress)
    state = _collect(merge)
    return MergeResult(state, merge.provenance(), merge.merger.coefficients)


def describe_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON: numbers, texts and lists as they are, models by their path or number of tensors."""
    return {name: _describe(value) for name, value in options.items()}


def _describe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return f"mapping of {len(value)} tensors"
    if hasattr(value, "specs"):
        return value.name if value.files else f"mapping of {len(value.specs)} tensors"
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _listed(models: Sequence[State | TensorSource]) -> list[State | TensorSource]:
    if isinstance(models, (Mapping, str)):
        raise TypeError("expected a sequence of models, got one model; write [model]")
    return list(models)


def _finite(block: Tensor) -> bool:
    wide = block if block.dtype in (torch.float32, torch.float64) else block.to(torch.float32)
    return math.isfinite(wide.sum().item()) or bool(wide.isfinite().all())


def _checked_copy(inputs: Inputs, source: TensorSource, at: Range) -> Tensor:
    if source.specs[at.key].dtype.is_floating_point:
        inputs.read(source, at)
    return source.read(*at)


def _collect(merge: Merge) -> dict[str, Tensor]:
    base, plan, specs = merge.inputs.base, merge.inputs.plan, merge.specs()
    flat = {key: torch.empty(spec.numel, dtype=spec.dtype) for key, spec in specs.items() if key not in plan.tied}

    def sink(at: Range, block: Tensor) -> None:
        flat[at.key][at.start : at.stop] = block

    merge.run(sink)
    own = {key: _placed(base, key, tensor.view(specs[key].shape)) for key, tensor in flat.items()}
    return {key: own[plan.tied.get(key, key)] for key in specs}


def _placed(base: TensorSource, key: str, tensor: Tensor) -> Tensor:
    return tensor.to(base.state[key].device) if isinstance(base, StateSource) else tensor
