"""Merging by gradient: one merged model, the entropy of its predictions, and the gradients of mask and coefficients.

The merged weights are θ = θ_0 + r ∘ Σ_k λ_k τ_k with r = m / mean(m) per tensor. They are the leaves of the autograd
graph, so that a backward pass gives g = ∂L/∂θ one tensor at a time; from there the chain rule is written out, and g is
freed before the next tensor's is made:

- ∂L/∂λ_k = ⟨g ∘ r, τ_k⟩ over the tensors of the group;
- ∂L/∂m = (g ∘ Δ − mean(g ∘ Δ ∘ m) / mean(m)) / mean(m) with Δ = Σ_k λ_k τ_k;
- ∂L/∂x = ∂L/∂m ∘ m (1 − m) / T.

Neither the mask nor its gradient is ever held for the whole model: m is drawn again where it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from merging.checks import choice
from merging.coefficients import Coefficients
from merging.concrete import FixedMask, MaskDraw, mask_blocks
from merging.entropy import entropy_loss
from merging.family import Family, Forward

BackwardMode = Literal["together", "per_task"]
BACKWARD_MODES = ("together", "per_task")

Consume = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class UnlabelledTask:
    """One task as merging sees it: inputs without labels.

    Args:
        name: for messages and curves.
        next_batch: gives the next batch of inputs, for ever.
        logits: takes the merged model's forward function and a batch, and gives what the loss takes: class logits
            ``(N, C)``, or token logits ``(N, T, V)``; a frozen head of the task is called here.
        loss: of these logits, a scalar.
    """

    name: str
    next_batch: Callable[[], Any]
    logits: Callable[[Forward, Any], Tensor]
    loss: Callable[[Tensor], Tensor] = entropy_loss


@dataclass(frozen=True)
class MergedWeights:
    """One merged model: leaves of the autograd graph, and what it was merged with.

    Args:
        family: pretrained model and task vectors.
        coefficients: λ.
        mask: the sample of the mask; ``None`` for all ones.
        leaves: key → merged tensor, float32.
        means: key → mean of the mask over that tensor.
    """

    family: Family
    coefficients: Coefficients
    mask: MaskDraw | FixedMask | None
    leaves: dict[str, Tensor]
    means: dict[str, float] = field(default_factory=dict)

    @property
    def forward(self) -> Forward:
        """The merged model's forward pass."""
        return self.family.forward(self.leaves)

    def coefficient_gradient(self, key: str, gradient: Tensor) -> list[float]:
        """∂L/∂λ_1 … ∂L/∂λ_K through one tensor.

        Args:
            key: the tensor.
            gradient: ∂L/∂θ of that tensor.

        Returns:
            K numbers.
        """
        sums = [0.0] * len(self.family.vectors)
        for start, stop in mask_blocks(gradient.numel()):
            part = gradient.reshape(-1)[start:stop]
            if self.mask is not None:
                part = part * self.mask.block(key, start, stop).div_(self.means[key])
            for index, vector in enumerate(self.family.vectors):
                sums[index] += torch.dot(part, vector[key].view(-1)[start:stop].float()).item()
        return sums

    def mask_gradient(self, key: str, gradient: Tensor) -> Tensor:
        """∂L/∂x of one tensor; takes the place of ``gradient``, and the merged tensor is lost.

        Args:
            key: the tensor.
            gradient: ∂L/∂θ of that tensor, overwritten.

        Returns:
            ∂L/∂x, the same shape.
        """
        assert isinstance(self.mask, MaskDraw) and self.mask.kind == "concrete"  # the callers' own
        flat, mean = gradient.view(-1), self.means[key]
        scratch = self.leaves[key].detach().view(-1)  # θ itself is needed no more: every use of it has run backwards
        factors = self.coefficients.of(key)
        total = 0.0
        for start, stop in mask_blocks(flat.numel()):
            mask = scratch[start:stop].copy_(self.mask.block(key, start, stop))
            part = flat[start:stop].mul_(self.family.combined(key, start, stop, factors))
            total += torch.dot(part, mask).item()
        shift = total / flat.numel() / mean
        for start, stop in mask_blocks(flat.numel()):
            mask = scratch[start:stop]
            slope = (1.0 - mask).mul_(mask).div_(self.mask.temperature * mean)
            flat[start:stop].sub_(shift).mul_(slope)
        return gradient


def merge_weights(
    family: Family,
    coefficients: Coefficients,
    mask: MaskDraw | FixedMask | None = None,
    memory: dict[str, Tensor] | None = None,
) -> MergedWeights:
    """θ_0 + r ∘ Σ_k λ_k τ_k as leaves that ask for gradients.

    Args:
        family: pretrained model and task vectors.
        coefficients: λ.
        mask: the sample of the mask; ``None`` for all ones.
        memory: of the last merged model, which is overwritten; empty the first time. Tensors that are made and freed
            in every step would leave holes.

    Returns:
        The merged model; neither the family nor the mask is changed.
    """
    leaves, means = {}, {}
    memory = {} if memory is None else memory
    for key, base in family.base.items():
        if key not in memory:
            memory[key] = torch.empty_like(base, memory_format=torch.contiguous_format)
        leaf = memory[key].detach()
        flat, origin, factors = leaf.view(-1), base.reshape(-1), coefficients.of(key)
        if mask is not None:
            means[key] = _draw(flat, mask, key)
        for start, stop in mask_blocks(flat.numel()):
            delta = family.combined(key, start, stop, factors)
            if mask is not None:
                delta.mul_(flat[start:stop].div_(means[key]))
            torch.add(origin[start:stop], delta, out=flat[start:stop])
        leaves[key] = leaf.requires_grad_()
    return MergedWeights(family, coefficients, mask, leaves, means)


def backward(
    merged: MergedWeights, tasks: Sequence[UnlabelledTask], consume: Consume, mode: BackwardMode = "together"
) -> list[float]:
    """The losses of all tasks on their next batches, and the gradient of their sum, tensor by tensor.

    Args:
        merged: the merged model.
        tasks: at least one; each gives one batch.
        consume: takes a key and ∂L/∂θ of that tensor, which it may overwrite; called once for each tensor that the
            losses depend on, in the order in which their gradients are ready.
        mode: ``together`` runs all tasks forward, then once backward: the gradient of one tensor is held at a time, and
            the activations of all tasks. ``per_task`` holds the activations of one task and the gradients of the whole
            model. Batches and logits are asked for in the tasks' order, with ``together`` from other threads.

    Returns:
        The loss of each task.

    Raises:
        ValueError: when a loss is not finite, depends on no merged tensor, or the mode is unknown.
    """
    choice("backward", mode, BACKWARD_MODES)
    leaves, seen = list(merged.leaves.values()), []
    losses = []

    def use(key: str, leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        seen.append(key)
        with torch.no_grad():
            consume(key, gradient if gradient.is_contiguous() else gradient.contiguous())

    if mode == "per_task":
        for task in tasks:
            losses.append(_loss(merged, task))
            losses[-1].backward(inputs=leaves)
            losses[-1] = losses[-1].detach()
        for key, leaf in merged.leaves.items():
            if leaf.grad is not None:
                use(key, leaf)
    else:
        hooks = [
            leaf.register_post_accumulate_grad_hook(lambda leaf, key=key: use(key, leaf))
            for key, leaf in merged.leaves.items()
        ]
        losses = [_in_fresh_thread(merged, task) for task in tasks]
        torch.stack(losses).sum().backward(inputs=leaves)
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError("the losses depend on none of the merged tensors: does the task's head call the model?")
    return [loss.item() for loss in losses]


def _draw(flat: Tensor, mask: MaskDraw | FixedMask, key: str) -> float:
    """Fill a flat tensor with the mask, and give its mean."""
    total = 0.0
    for start, stop in mask_blocks(flat.numel()):
        flat[start:stop] = mask.block(key, start, stop)
        total += flat[start:stop].sum().item()
    return max(total / max(flat.numel(), 1), torch.finfo(torch.float32).tiny)


def _in_fresh_thread(merged: MergedWeights, task: UnlabelledTask) -> Tensor:
    """The loss of one task, computed by a thread of its own.

    Autograd runs the newest operation first and counts operations per thread. From one thread it would run the last
    task's graph to its end, then the one before, and hold the sums of all gradients meanwhile; counted apart, the tasks
    go backwards side by side, and each tensor's gradient is complete before the next is begun.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_loss, merged, task).result()


def _loss(merged: MergedWeights, task: UnlabelledTask) -> Tensor:
    loss = task.loss(task.logits(merged.forward, task.next_batch()))
    if not math.isfinite(loss.item()):
        raise ValueError(f"task '{task.name}': the loss is {loss.item()}; expected a finite number")
    if not loss.requires_grad:
        raise ValueError(f"task '{task.name}': the loss does not depend on the merged weights")
    return loss
