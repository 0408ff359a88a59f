"""Merging coefficients λ: one per task, or one per task and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.checks import choice, number
from merging.layers import layer_of

GRANULARITIES = ("task", "tensor", "layer")


@dataclass(frozen=True)
class Coefficients:
    """λ of every task and group of tensors.

    Args:
        values: ``(K, G)``, float64, on the CPU: tasks × groups.
        columns: key → its group.
        groups: names of the groups, in order.
    """

    values: Tensor
    columns: dict[str, int]
    groups: tuple[str, ...]

    @classmethod
    def filled(
        cls, value: float, tasks: int, keys: Sequence[str], granularity: str = "task", *, trained: bool = False
    ) -> Coefficients:
        """All coefficients equal.

        Args:
            value: λ.
            tasks: K.
            keys: the tensors that are merged.
            granularity: ``task`` for one group; ``tensor`` for one per parameter tensor, which is what AdaMerging's
                authors call layer-wise; ``layer`` for one per module that owns tensors.
            trained: whether gradients are to be kept.

        Returns:
            The coefficients.

        Raises:
            ValueError: for another granularity or a λ that is not finite.
        """
        choice("granularity", granularity, GRANULARITIES)
        names = {"task": lambda key: "all", "tensor": str, "layer": layer_of}[granularity]
        groups = tuple(dict.fromkeys(names(key) for key in keys))
        columns = {key: groups.index(names(key)) for key in keys}
        values = torch.full((tasks, len(groups)), number("scaling_factor", value), dtype=torch.float64)
        return cls(values.requires_grad_(trained), columns, groups)

    def of(self, key: str) -> list[float]:
        """λ_1 … λ_K of one tensor."""
        return self.values.detach()[:, self.columns[key]].tolist()

    def add_gradient(self, key: str, gradient: Sequence[float]) -> None:
        """Add ∂L/∂λ_1 … ∂L/∂λ_K that one tensor contributes.

        Args:
            key: the tensor.
            gradient: K numbers.
        """
        if self.values.grad is None:
            self.values.grad = torch.zeros_like(self.values)
        self.values.grad[:, self.columns[key]] += torch.tensor(gradient, dtype=torch.float64)

    def replaced(self, values: Tensor) -> Coefficients:
        """The same groups with other values, ``(K, G)``."""
        return Coefficients(values, self.columns, self.groups)

    def describe(self) -> dict[str, list[float]]:
        """Group → λ of every task, JSON-serialisable."""
        return {name: self.values.detach()[:, column].tolist() for column, name in enumerate(self.groups)}
