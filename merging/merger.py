"""What every method is asked, and what it prepares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from merging.blocks import Range
from merging.checks import choice
from merging.plan import POLICIES, Policy

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


def _floating_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"option 'output_dtype': expected a floating-point dtype such as bfloat16, got {dtype!r}")
    return dtype
