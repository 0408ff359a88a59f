"""A pretrained module and its fine-tuned models, ready for merging by gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from merging.averaging import weight_averaging
from merging.blocks import Inputs
from merging.layers import is_statistic
from merging.merger import MergeSettings
from merging.opening import Model, open_family
from merging.plan import MergePlan, find_misfits, plan_merge
from merging.result import State
from merging.sources import StateSource, TensorSource

Allocate = Callable[[int, str, torch.Size], Tensor]


@dataclass(frozen=True)
class Forward:
    """A module run with other weights than its own; tied parameters follow the first of them.

    Args:
        module: left as it is.
        weights: key → tensor; what is missing stays the module's own.
    """

    module: nn.Module
    weights: Mapping[str, Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output."""
        return functional_call(self.module, dict(self.weights), args, kwargs)

    def inside(self, module: nn.Module, prefix: str) -> Forward:
        """Another module that holds one like this under a name, such as a classifier with its backbone.

        Args:
            module: the outer module; its head keeps its own weights.
            prefix: what the outer module's keys begin with, such as ``bert.``; empty for none.
        """
        return Forward(module, {prefix + key: tensor for key, tensor in self.weights.items()})


@dataclass(frozen=True)
class Family:
    """θ_0 and the task vectors τ_k, and how a merged model is run.

    Args:
        module: the pretrained model; its parameters are θ_0 and are never written.
        base: key → θ_0, float32, of the parameters that differ in some model; of tied ones the first.
        vectors: per model, key → τ_k; float32, bfloat16 or float16, anywhere that PyTorch reads like memory.
        fixed: key → tensor of what is not trained: parameters that no model changed, and running statistics of
            BatchNorm as the mixture of the models' (see :mod:`merging.batch_norm`).
        sources: the pretrained model and the fine-tuned ones, for the final merge.
        plan: what fits.
    """

    module: nn.Module
    base: dict[str, Tensor]
    vectors: tuple[dict[str, Tensor], ...]
    fixed: dict[str, Tensor]
    sources: tuple[TensorSource, tuple[TensorSource, ...]]
    plan: MergePlan

    @property
    def scalars(self) -> int:
        """P: number of scalars that are trained or masked."""
        return sum(tensor.numel() for tensor in self.base.values())

    def combined(self, key: str, start: int, stop: int, coefficients: Sequence[float]) -> Tensor:
        """Σ_k λ_k τ_k over scalars ``[start, stop)`` of one tensor, float32, ``(stop - start,)``."""
        total = torch.zeros(stop - start, device=self.base[key].device)
        for vector, factor in zip(self.vectors, coefficients):
            total.add_(vector[key].view(-1)[start:stop], alpha=factor)
        return total

    def forward(self, weights: Mapping[str, Tensor]) -> Forward:
        """The module's forward pass with other weights, of the keys of ``base``."""
        return Forward(self.module, {**self.fixed, **weights})


def forward_of(module: nn.Module, state: State) -> Forward:
    """A module run with a whole state; of tied parameters the first counts, wherever its copies come from.

    Args:
        module: left as it is.
        state: keys as those of the module.

    Returns:
        Its forward pass.
    """
    tied = StateSource(module.state_dict(), "module").tied
    return Forward(module, {key: tensor.detach() for key, tensor in state.items() if key not in tied})


def open_module_family(
    module: nn.Module,
    models: Sequence[Model],
    *,
    dtype: torch.dtype = torch.float32,
    allocate: Allocate | None = None,
) -> Family:
    """Compare a pretrained module with fine-tuned models of it, and compute their task vectors block by block.

    Args:
        module: the pretrained model, float32; neither copied nor changed.
        models: state dicts or paths of the fine-tuned models (see :func:`merging.opening.open_model`); paths are read
            block by block, so that nothing but the task vectors is held.
        dtype: of the task vectors: float32, or bfloat16 or float16 to hold half.
        allocate: gives the memory of a task vector from the model's index, the key and the shape, in ``dtype``:
            mapped files, for example; ``None`` for ordinary memory.

    Returns:
        The family.

    Raises:
        ValueError: when keys, shapes or kinds differ, a number is NaN or infinite, no parameter differs, or the module
            is not float32.
        FileNotFoundError: when a path does not exist.
    """
    _check_module(module)
    state = module.state_dict()
    source, sources = open_family(state, models)
    source.name = "the pretrained model"
    misfits = find_misfits(source, sources)
    if misfits:
        more = f"; nor do {len(misfits) - 1} more tensors fit" if len(misfits) > 1 else ""
        raise ValueError(f"{misfits[0]}{more}")
    plan = plan_merge(source, sources)
    keys = tuple(key for key in plan.merged if not is_statistic(key))
    allocate = allocate or (lambda index, key, shape: torch.empty(shape, dtype=dtype, device=state[key].device))
    vectors = _task_vectors(Inputs(source, tuple(sources), plan, keys), allocate)
    changed = [key for key in keys if any(vector[key].any() for vector in vectors)]
    if not changed:
        raise ValueError("no parameter of the fine-tuned models differs from the pretrained model: nothing to merge")
    trained = set(changed)
    fixed = {key: state[key].detach() for key in keys if key not in trained}
    fixed.update(_statistics(state, sources, plan))
    base = {key: state[key].detach() for key in changed}
    kept = tuple({key: vector[key] for key in changed} for vector in vectors)
    return Family(module, base, kept, fixed, (source, tuple(sources)), plan)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: no dropout, running statistics used and not written; every flag comes back."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def _check_module(module: nn.Module) -> None:
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"the pretrained model: '{key}' is {tensor.dtype}, expected float32; call module.float()")


def _task_vectors(inputs: Inputs, allocate: Allocate) -> list[dict[str, Tensor]]:
    shapes = {key: torch.Size(inputs.plan.specs[key].shape) for key in inputs.keys}
    vectors = [{key: allocate(index, key, shapes[key]) for key in inputs.keys} for index in range(len(inputs.models))]
    for at, blocks in inputs.each(inputs.task_vectors, inputs.ranges(inputs.keys), "task vectors"):
        for vector, block in zip(vectors, blocks):
            vector[at.key].view(-1)[at.start : at.stop] = block.to(vector[at.key].dtype)
    return vectors


def _statistics(state: State, sources: Sequence[TensorSource], plan: MergePlan) -> dict[str, Tensor]:
    """Running means and variances as the mixture of the models'."""
    keys = [key for key in plan.merged if is_statistic(key)]
    if not keys:
        return {}
    models = [
        {key: source.read(key, 0, plan.specs[key].numel).view(plan.specs[key].shape) for key in keys}
        for source in sources
    ]
    settings = MergeSettings(batch_norm="mixture")
    return weight_averaging({key: state[key] for key in keys}, models, settings=settings).state
