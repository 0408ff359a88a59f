"""What every merge returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class MergeResult:
    """A merged model and how it came about.

    Args:
        state: name → tensor, in the key order of the base; new tensors, never views of an input.
        provenance: method, paper, options, number of models, tensors merged and copied; JSON-serialisable.
        coefficients: weight of the first model per layer (or per tensor) where the method has one, such as DuET's
            α; ``None`` otherwise.
    """

    state: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)
    coefficients: dict[str, float] | None = None
