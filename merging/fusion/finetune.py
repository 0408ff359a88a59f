"""Ordinary supervised training, for the embedded task models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from merging.fusion.problem import Samples


class BoundedHead(nn.Linear):
    """A linear head on features of mean 0 and variance 1 per sample: like CLIP's cosines it leaves their size out."""

    def forward(self, features: Tensor) -> Tensor:
        """Class logits ``(N, C)`` of features ``(N, D)``."""
        return super().forward(nn.functional.layer_norm(features, features.shape[-1:]))


@torch.no_grad()
def probe(samples: Samples, features: Callable[[Any], Tensor], head: nn.Linear, strength: float = 1.0) -> None:
    """Set a linear head by logistic regression on features that stand still.

    Fine-tuning that begins from such a head, and leaves it as it is, moves the backbone less than one that begins from
    a random head; CLIP's zero-shot heads have the same part in the paper.

    Args:
        samples: with labels; every class occurs.
        features: takes a batch, gives ``(N, D)``.
        head: from D features to C classes, overwritten.
        strength: inverse of the penalty on the head's weights.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    found = [(features(inputs), labels) for inputs, labels in samples.batches(64)]
    rows = torch.cat([part for part, _ in found]).double()
    if isinstance(head, BoundedHead):
        rows = nn.functional.layer_norm(rows, rows.shape[-1:])
    inputs = rows.numpy()
    scale = inputs.std() or 1.0
    labels = [label for _, part in found for label in part]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a head need not be the very best
        fitted = LogisticRegression(C=strength, max_iter=100).fit(inputs / scale, labels)
    weight, bias = fitted.coef_ / scale, fitted.intercept_
    if head.out_features == 2:  # one row stands for the difference of both
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    head.weight.copy_(torch.from_numpy(weight))
    head.bias.copy_(torch.from_numpy(bias))


@dataclass(frozen=True)
class TrainingPlan:
    """How a model is trained.

    Args:
        epochs: passes over the samples.
        learning_rate: the largest, of AdamW under a one-cycle schedule.
        batch: samples per step; the last, incomplete batch of an epoch is left out.
        weight_decay: of AdamW.
        seed: of the order.
    """

    epochs: int
    learning_rate: float
    batch: int = 32
    weight_decay: float = 0.01
    seed: int = 0


def train(
    samples: Samples,
    logits: Callable[[Any], Tensor],
    parameters: Sequence[nn.Parameter],
    plan: TrainingPlan,
) -> list[float]:
    """Minimise the cross-entropy, in place.

    Args:
        samples: with labels, at least one batch.
        logits: the model: takes a batch, gives ``(N, C)``.
        parameters: what is trained.
        plan: how.

    Returns:
        Mean loss of every epoch.

    Raises:
        ValueError: when there are fewer samples than one batch, or the loss is not finite.
    """
    steps = len(samples.items) // plan.batch
    if not steps or samples.labels is None:
        raise ValueError(f"{samples.where}: expected at least {plan.batch} labelled samples, got {len(samples.items)}")
    adam = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, plan.learning_rate, total_steps=plan.epochs * steps)
    generator = torch.Generator().manual_seed(plan.seed)
    history = []
    for _ in range(plan.epochs):
        order = torch.randperm(len(samples.items), generator=generator)[: steps * plan.batch]
        total = 0.0
        for chosen in order.view(steps, plan.batch).tolist():
            truth = torch.tensor([samples.labels[place] for place in chosen])
            loss = nn.functional.cross_entropy(
                logits(samples.collate([samples.items[place] for place in chosen])), truth
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
            rate.step()
            total += loss.item()
        if not total < float("inf"):
            raise ValueError(f"{samples.where}: training diverged (loss {total / steps})")
        history.append(total / steps)
    return history
