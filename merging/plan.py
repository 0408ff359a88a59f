"""The plan of a merge: what fits, what does not, and what happens to it, known before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from merging.checks import choice
from merging.sources import TensorSource, TensorSpec

Policy = Literal["error", "base", "intersection"]
POLICIES = ("error", "base", "intersection")
_SHOWN = 50


@dataclass(frozen=True)
class Misfit:
    """One tensor of one model that does not match the base."""

    key: str
    source: str
    problem: str

    def __str__(self) -> str:
        return f"{self.source}: '{self.key}' {self.problem}"


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do with each tensor.

    Args:
        policy: what happens to tensors that do not fit.
        specs: key → dtype and shape in the base, of every tensor of the output, in the order of the base.
        merged: floating-point keys that are merged; of tied keys only the first.
        copied: integer and boolean keys, copied and never scaled.
        kept: keys that do not fit and are copied from the base (policy ``base``).
        left_out: keys that are not in the output, although a model or the base has them.
        tied: key → the key whose merged tensor it shares.
        misfits: everything that does not match.
        notes: differences that do no harm, such as stored dtypes.
    """

    policy: Policy
    specs: dict[str, TensorSpec]
    merged: tuple[str, ...]
    copied: tuple[str, ...]
    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    tied: dict[str, str]
    misfits: tuple[Misfit, ...]
    notes: tuple[str, ...]

    @property
    def scalars(self) -> int:
        """Number of scalars that are merged."""
        return sum(self.specs[key].numel for key in self.merged)

    def table(self) -> str:
        """The plan as text, one line per count and per tensor that does not fit."""
        lines = [
            f"merged     {len(self.merged)} tensors, {self.scalars:,} scalars",
            f"copied     {len(self.copied)} integer tensors",
            f"tied       {len(self.tied)} tensors",
            f"from base  {len(self.kept)} tensors that do not fit",
            f"left out   {len(self.left_out)} tensors",
        ]
        lines += [f"does not fit  {line}" for line in _shortened(self.misfits)]
        lines += [f"note          {line}" for line in _shortened(self.notes)]
        return "\n".join(lines)


def plan_merge(base: TensorSource, models: Sequence[TensorSource], policy: Policy = "error") -> MergePlan:
    """Compare keys, shapes, kinds and ties of all models with the base; nothing is read but the headers.

    Args:
        base: the model whose keys, shapes and order the output has.
        models: the models to merge.
        policy: ``error`` refuses any tensor that does not fit; ``base`` copies it from the base and leaves out what
            the base does not have; ``intersection`` leaves it out of the output.

    Returns:
        The plan.

    Raises:
        ValueError: when there is no model, when no tensor is left to merge, or when the policy is ``error`` and a
            tensor does not fit; the message names the first and lists all.
    """
    choice("policy", policy, POLICIES)
    if not models:
        raise ValueError("expected at least one model to merge, got none")
    misfits = find_misfits(base, models)
    if misfits and policy == "error":
        raise ValueError(_refusal(misfits))
    plan = _plan(base, models, policy, misfits)
    if not plan.merged:
        raise ValueError(f"{base.name} and the models share no floating-point tensor that could be merged")
    return plan


def find_misfits(base: TensorSource, models: Sequence[TensorSource]) -> tuple[Misfit, ...]:
    """Every tensor of the models that does not match the base, in the models' order."""
    return tuple(misfit for model in models for misfit in _misfits(base, model))


def _plan(base: TensorSource, models: Sequence[TensorSource], policy: Policy, misfits: tuple[Misfit, ...]) -> MergePlan:
    bad = _with_ties({misfit.key for misfit in misfits}, base)
    extra = tuple(dict.fromkeys(key for model in models for key in model.specs if key not in base.specs))
    absent = bad if policy == "intersection" else set()
    specs = {key: spec for key, spec in base.specs.items() if key not in absent}
    tied = {key: first for key, first in base.tied.items() if key not in bad}
    own = [key for key in specs if key not in bad and key not in tied]
    return MergePlan(
        policy=policy,
        specs=specs,
        merged=tuple(key for key in own if specs[key].dtype.is_floating_point),
        copied=tuple(key for key in own if not specs[key].dtype.is_floating_point),
        kept=tuple(key for key in specs if key in bad),
        left_out=(*(key for key in base.specs if key in absent), *extra),
        tied=tied,
        misfits=misfits,
        notes=tuple(_notes(base, models)),
    )


def _misfits(base: TensorSource, model: TensorSource) -> Iterable[Misfit]:
    for key, spec in base.specs.items():
        found = model.specs.get(key)
        if found is None:
            yield Misfit(key, model.name, f"is missing (the base has shape {spec.shape})")
        elif found.shape != spec.shape:
            yield Misfit(key, model.name, f"has shape {found.shape}, expected {spec.shape} as in the base")
        elif found.dtype.is_floating_point != spec.dtype.is_floating_point:
            yield Misfit(key, model.name, f"is {_name(found.dtype)}, the base has {_name(spec.dtype)}")
        elif key in base.tied and not _same_tie(base.tied[key], key, model):
            yield Misfit(key, model.name, f"differs from '{base.tied[key]}', to which it is tied in the base")
    for key, spec in model.specs.items():
        if key not in base.specs:
            yield Misfit(key, model.name, f"is not in the base (shape {spec.shape})")


def _same_tie(first: str, key: str, model: TensorSource) -> bool:
    """Whether two keys that the base ties hold the same values in a model."""
    if model.tied.get(key, key) == model.tied.get(first, first):
        return True
    if first not in model.specs or model.specs[first] != model.specs[key]:
        return False
    size = model.specs[key].numel
    return torch.equal(model.read(key, 0, size), model.read(first, 0, size))


def _with_ties(keys: set[str], base: TensorSource) -> set[str]:
    """The keys and all that share a tensor with one of them."""
    roots = {base.tied.get(key, key) for key in keys}
    return keys | {key for key in base.specs if base.tied.get(key, key) in roots}


def _notes(base: TensorSource, models: Sequence[TensorSource]) -> Iterable[str]:
    for model in models:
        shared = [key for key in model.specs if key in base.specs]
        other = [key for key in shared if model.specs[key].dtype != base.specs[key].dtype]
        if other:
            pair = f"{_name(model.specs[other[0]].dtype)} instead of {_name(base.specs[other[0]].dtype)}"
            yield f"{model.name}: {len(other)} tensors are stored in another dtype, '{other[0]}' as {pair}"
        untied = [key for key in shared if key in model.tied and key not in base.tied]
        if untied:
            yield f"{model.name}: '{untied[0]}' is tied to '{model.tied[untied[0]]}', but not in the base"


def _refusal(misfits: tuple[Misfit, ...]) -> str:
    if len(misfits) == 1:
        return str(misfits[0])
    lines = "\n".join(f"  {line}" for line in _shortened(misfits))
    return f"{len(misfits)} tensors do not fit; the first is {misfits[0]}; all of them:\n{lines}"


def _shortened(items: Sequence[object]) -> list[str]:
    lines = [str(item) for item in items[:_SHOWN]]
    return [*lines, f"... and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else lines


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
