"""How two models, or two task vectors, relate: norms, cosine and sign conflict per layer and in total."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from merging.blocks import Inputs, Progress, Range
from merging.layers import by_layer, is_statistic
from merging.opening import Model, open_model
from merging.plan import Policy, plan_merge
from merging.sign_conflict import count_conflicts

_COLUMNS = ("scalars", "norm a", "norm b", "norm a-b", "cosine", "conflict")


@dataclass(frozen=True)
class Relation:
    """How two vectors relate.

    Args:
        name: the layer, or ``total``.
        scalars: length of the vectors.
        norm_a: ℓ2 norm of the first.
        norm_b: ℓ2 norm of the second.
        norm_difference: ℓ2 norm of their difference.
        cosine: cosine of the angle between them; NaN where one is zero.
        sign_conflict: share of scalars with a·b < 0.
    """

    name: str
    scalars: int
    norm_a: float
    norm_b: float
    norm_difference: float
    cosine: float
    sign_conflict: float


@dataclass(frozen=True)
class Comparison:
    """Two models compared layer by layer.

    Args:
        a: name of the first model.
        b: name of the second.
        base: name of the model that was subtracted from both; ``None`` where the weights themselves were compared.
        layers: one relation per layer, in the order of the first model.
        total: the relation of all parameters.
        left_out: keys that the two models (and the base) do not share, or that differ in shape.
    """

    a: str
    b: str
    base: str | None
    layers: tuple[Relation, ...]
    total: Relation
    left_out: tuple[str, ...]

    def table(self) -> str:
        """The comparison as text: a heading, one line per layer, the total."""
        rows = [_cells(relation) for relation in (*self.layers, self.total)]
        width = max(len("layer"), *(len(row[0]) for row in rows))
        what = f"task vectors from {self.base}" if self.base else "weights"
        lines = [f"a = {self.a}, b = {self.b} ({what})", _line(("layer", *_COLUMNS), width)]
        lines += [_line(row, width) for row in rows]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out)} tensors that do not fit, the first is '{self.left_out[0]}'")
        return "\n".join(lines)


def diff(
    a: Model, b: Model, *, base: Model | None = None, policy: Policy = "error", progress: Progress | None = None
) -> Comparison:
    """Compare two models per layer and in total; of models on disk only blocks are in memory.

    Parameters only: BatchNorm statistics and integer tensors are left out. A layer is the module that owns the tensors.

    Args:
        a: the first model: mapping, source or path.
        b: the second.
        base: θ_0; with it the task vectors a − θ_0 and b − θ_0 are compared, without it the weights.
        policy: ``error`` refuses tensors that do not fit; ``base`` and ``intersection`` leave them out.
        progress: called with the name of the phase, the scalars done and the scalars in total.

    Returns:
        The comparison.

    Raises:
        ValueError: when tensors do not fit or are not finite, or a file is damaged.
        FileNotFoundError: when a path does not exist.
        TypeError: when a model is no mapping, source or path.
    """
    first, second = open_model(a, "a"), open_model(b, "b")
    ancestor = None if base is None else open_model(base, "base")
    others = [second] if ancestor is None else [second, ancestor]
    plan = plan_merge(first, others, policy)
    keys = tuple(key for key in plan.merged if not is_statistic(key))
    inputs = Inputs(first, tuple(others), plan, keys, progress=progress)

    def measure(at: Range) -> list[float]:
        one, two = inputs.read(first, at), inputs.read(second, at)
        if ancestor is not None:
            origin = inputs.read(ancestor, at)
            one, two = one.sub_(origin), two.sub_(origin)
        return _measures(one, two)

    sums = inputs.sums(measure, keys, "compare")
    layers = [
        _relation(name, (sums[key] for key in members if key in sums)) for name, members in by_layer(keys).items()
    ]
    total = _relation("total", sums.values())
    left_out = tuple(dict.fromkeys(misfit.key for misfit in plan.misfits))
    return Comparison(first.name, second.name, ancestor and ancestor.name, tuple(layers), total, left_out)


def _measures(one: Tensor, two: Tensor) -> list[float]:
    difference = one - two
    return [
        float(len(one)),
        (one * one).sum().item(),
        (two * two).sum().item(),
        (difference * difference).sum().item(),
        (one * two).sum().item(),
        float(count_conflicts(one, two)),
    ]


def _relation(name: str, rows: Iterable[Sequence[float]]) -> Relation:
    columns = [math.fsum(column) for column in zip(*rows)] or [0.0] * 6
    scalars, square_a, square_b, square_difference, dot, conflicts = columns
    norm_a, norm_b = math.sqrt(square_a), math.sqrt(square_b)
    cosine = max(-1.0, min(1.0, dot / norm_a / norm_b)) if norm_a and norm_b else math.nan
    rate = conflicts / scalars if scalars else 0.0
    return Relation(name, int(scalars), norm_a, norm_b, math.sqrt(square_difference), cosine, rate)


def _cells(relation: Relation) -> tuple[str, ...]:
    return (
        relation.name,
        f"{relation.scalars:,}",
        f"{relation.norm_a:.4g}",
        f"{relation.norm_b:.4g}",
        f"{relation.norm_difference:.4g}",
        f"{relation.cosine:.4f}",
        f"{relation.sign_conflict:.2%}",
    )


def _line(cells: Sequence[str], width: int) -> str:
    return "  ".join([cells[0].ljust(width), *(cell.rjust(13) for cell in cells[1:])])
