"""Stages of detectors with a Detect head: the class loss over some classes, parallel heads, distillation by anchor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionTrainer

from duet.detectors.parallel_head import ParallelDetect
from duet.detectors.ultralytics_training import StageTraining
from duet.losses.distillation import erd_distillation, filtered_distillation, lwf_distillation, weighted_distillation

DISTILLATIONS = {
    "paper": filtered_distillation,
    "weighted": weighted_distillation,
    "lwf": lwf_distillation,
    "erd": erd_distillation,
}
NEVER = -20.0  # a class that a head does not have: a logit that means "no" in student and teacher alike


class YoloStageTrainer(StageTraining, DetectionTrainer):
    """Ultralytics' detection trainer with a stage plan."""

    def own_loss(self, model: nn.Module) -> Callable:
        """The detector's own loss; with parallel heads that of the last one, on its own classes."""
        head = model.model[-1]
        if isinstance(head, ParallelDetect):
            return _loss_of_last_head(model, head)
        if self.plan.negatives == "new" and self.plan.old_classes:
            weights = torch.ones(head.nc, device=self.device)
            weights[: self.plan.old_classes] = 0.0
            model.class_weights = weights
        return model.init_criterion()

    def distill(self, outputs: Any, taught: Any) -> Tensor:
        """Same anchors in student and teacher: output by output."""
        bins = self.plan.teacher.model[-1].reg_max
        return DISTILLATIONS[self.plan.distillation.kind](*_pairs(outputs, taught, self.plan.old_classes, bins))

    def loss_factor(self) -> float:
        """1: Ultralytics' own terms are sums over images, and with the scale below so are the added ones."""
        return 1.0

    def loss_scale(self, images: Tensor) -> float:
        """The batch size, by which Ultralytics' own terms are multiplied."""
        return len(images)


def _loss_of_last_head(model: nn.Module, head: ParallelDetect) -> Callable:
    loss, last = model.init_criterion(), head.heads[-1]
    first = head.nc - last.nc
    loss.nc, loss.no, loss.assigner.num_classes = last.nc, last.no, last.nc

    def of_last_head(outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(outputs, {**batch, "cls": batch["cls"] - first})

    return of_last_head


def _pairs(student: dict, teacher: dict, old_classes: int, bins: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class logits (B, A, C_old) of student and teacher, then box logits (B, A, 4, R) of both.

    With parallel heads the old heads are laid side by side along the anchors.
    """
    if "old_heads" in student:
        taught, learned = [*teacher.get("old_heads", []), teacher], student["old_heads"]
    else:
        taught, learned = [teacher], [{**student, "scores": student["scores"][:, :old_classes]}]
    return (
        _class_logits(learned),
        _class_logits(taught),
        _box_logits(learned, bins),
        _box_logits(taught, bins),
    )


def _class_logits(heads: list[dict]) -> Tensor:
    width = max(head["scores"].shape[1] for head in heads)
    padded = [
        nn.functional.pad(head["scores"], (0, 0, 0, width - head["scores"].shape[1]), value=NEVER) for head in heads
    ]
    return torch.cat(padded, 2).transpose(1, 2)


def _box_logits(heads: list[dict], bins: int) -> Tensor:
    return torch.cat([head["boxes"] for head in heads], 2).transpose(1, 2).unflatten(2, (4, bins))
