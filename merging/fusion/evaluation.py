"""Accuracy of a model on the tasks, and which scaling factor is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from merging.family import Forward, evaluating
from merging.fusion.problem import FusionProblem, FusionTask
from merging.result import State


def accuracy(forward: Forward, task: FusionTask, batch: int = 64) -> float:
    """Share of the task's test samples that are classified right, from 0 to 1.

    Args:
        forward: the model without head.
        task: head and test set.
        batch: samples at once.

    Returns:
        The accuracy.

    Raises:
        ValueError: when head and classes do not fit, or logits are not finite.
    """
    right = total = 0
    for inputs, labels in task.test.batches(batch):
        with torch.no_grad():
            logits = task.logits(forward, inputs)
        check_logits(logits, task)
        right += int((task.predict(logits).cpu() == torch.tensor(labels)).sum())
        total += len(labels)
    return right / total


def check_logits(logits: torch.Tensor, task: FusionTask) -> None:
    """Refuse logits of another number of classes, and NaN.

    Raises:
        ValueError: naming the task.
    """
    if logits.ndim == 2 and logits.shape[1] != len(task.classes):
        raise ValueError(
            f"task '{task.name}': the head gives {logits.shape[1]} classes, the data have {len(task.classes)} "
            f"({', '.join(task.classes[:4])}{', …' if len(task.classes) > 4 else ''})"
        )
    if not logits.isfinite().all():
        raise ValueError(f"task '{task.name}': the model gives {logits[~logits.isfinite()][0].item()} on its test set")


def accuracies(problem: FusionProblem, state: State, tasks: Sequence[FusionTask] | None = None) -> dict[str, float]:
    """Accuracy of one model on every task.

    Args:
        problem: module and tasks.
        state: the weights, keys as those of the module.
        tasks: which; all by default.

    Returns:
        Task → accuracy.
    """
    with evaluating(problem.module):
        forward = Forward(problem.module, state)
        return {task.name: accuracy(forward, task) for task in (tasks or problem.tasks)}


def mean(values: Mapping[str, float]) -> float:
    """The plain mean over tasks."""
    return sum(values.values()) / len(values)
