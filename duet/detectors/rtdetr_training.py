"""Stages of RT-DETR: the class loss over the new classes, distillation by matched queries."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.utils.loss import RTDETRDetectionLoss

from duet.detectors.ultralytics_training import StageTraining
from duet.losses.query_distillation import QUERY_DISTILLATIONS, match_queries


class Queries(NamedTuple):
    """Outputs of one layer: class logits (B, Q, C) and boxes (B, Q, 4) as centre and size, 0 to 1."""

    class_logits: Tensor
    boxes_cxcywh: Tensor


class RtdetrStageTrainer(StageTraining, RTDETRTrainer):
    """Ultralytics' RT-DETR trainer with a stage plan."""

    def own_loss(self, model: nn.Module) -> nn.Module:
        """RT-DETR's own loss; under ``negatives: new`` its class term is taken over the new classes only."""
        if self.plan.negatives == "new" and self.plan.old_classes:
            return NewClassesLoss(model.model[-1].nc, self.plan.old_classes)
        return model.init_criterion()

    def distill(self, outputs: Any, taught: Any) -> Tensor:
        """Student queries are matched once, by the last layer, and compared in every layer and the selection.

        The layers' losses are summed, as RT-DETR sums its own over them.
        """
        old = self.plan.old_classes
        student = [Queries(logits[..., :old], boxes) for logits, boxes in _layers(outputs)]
        teacher = _layers(taught)
        order = match_queries(*student[-1], *teacher[-1])
        student = [Queries(*(_gathered(value, order) for value in layer)) for layer in student]
        distillation = QUERY_DISTILLATIONS[self.plan.distillation.kind]
        return sum(distillation(*one, *other) for one, other in zip(student, teacher))


class NewClassesLoss(RTDETRDetectionLoss):
    """RT-DETR's loss whose class term leaves the old classes out.

    Args:
        classes: number of all classes.
        old_classes: how many of them, the first ones, are left out.
    """

    def __init__(self, classes: int, old_classes: int) -> None:
        super().__init__(nc=classes, use_vfl=True)
        self.old_classes = old_classes

    def _get_loss_class(
        self, pred_scores: Tensor, targets: Tensor, gt_scores: Tensor, num_gts: int, postfix: str = ""
    ) -> dict[str, Tensor]:
        everything, self.nc = self.nc, self.nc - self.old_classes
        try:  # labels are new classes or, one past the last class, background
            new = pred_scores[..., self.old_classes :]
            return super()._get_loss_class(new, targets - self.old_classes, gt_scores, num_gts, postfix)
        finally:
            self.nc = everything


def _layers(outputs: tuple) -> list[Queries]:
    """Query selection and decoder layers of a head's raw outputs, the denoising queries left out."""
    boxes, logits, selected_boxes, selected_logits, denoising = outputs
    if denoising is not None:
        _, boxes = torch.split(boxes, denoising["dn_num_split"], dim=2)
        _, logits = torch.split(logits, denoising["dn_num_split"], dim=2)
    return [Queries(selected_logits, selected_boxes), *(Queries(*layer) for layer in zip(logits, boxes))]


def _gathered(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
