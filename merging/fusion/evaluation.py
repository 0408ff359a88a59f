"""Accuracy of a model on the tasks, and which scaling factor is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from scipy.stats import spearmanr

from merging.family import Forward, evaluating, forward_of
from merging.fusion.problem import FusionProblem, FusionTask
from merging.result import State


def score(forward: Forward, task: FusionTask, batch: int = 64) -> float:
    """Share of the task's test samples that are classified right, from 0 to 1; or Spearman's rank correlation.

    Args:
        forward: the model without head.
        task: head, test set and metric.
        batch: samples at once.

    Returns:
        The accuracy, or the correlation from −1 to 1; 0 where all predictions are equal.

    Raises:
        ValueError: when head and classes do not fit, or logits are not finite.
    """
    predicted: list[float] = []
    truth: list[float] = []
    for inputs, labels in task.test.batches(batch):
        with torch.no_grad():
            logits = task.logits(forward, inputs)
        check_logits(logits, task)
        predicted += task.predict(logits).tolist()
        truth += labels
    if task.metric == "spearman":
        correlation = float(spearmanr(predicted, truth).statistic) if len(set(predicted)) > 1 else 0.0
        return correlation if math.isfinite(correlation) else 0.0
    return sum(one == other for one, other in zip(predicted, truth)) / len(truth)


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
        forward = forward_of(problem.module, state)
        return {task.name: score(forward, task) for task in (tasks or problem.tasks)}


def mean(values: Mapping[str, float]) -> float:
    """The plain mean over tasks."""
    return sum(values.values()) / len(values)
