"""Distillation for detectors whose outputs are a set of queries in no fixed order, such as RT-DETR's; our own.

Shapes: ``class_logits`` (B, Q, C), C the old classes; ``boxes_cxcywh`` (B, Q, 4), centre and size as parts of the
image's width and height, 0 to 1.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from duet.losses.distillation import (
    class_excess,
    filtered_distillation,
    lwf_distillation,
    mean_where,
    outstanding,
)

# The gains of RT-DETR's own matching cost and loss (Zhao et al., CVPR 2024).
CLASS_COST, BOX_GAIN, GIOU_GAIN = 2.0, 5.0, 2.0
TINY = 1e-9  # area, far below that of a pixel


@torch.no_grad()
def match_queries(
    student_classes: Tensor, student_boxes: Tensor, teacher_classes: Tensor, teacher_boxes: Tensor
) -> Tensor:
    """The student's query for each query of the teacher, one to one.

    Cost of a pair: the teacher query's confidence (its largest class probability) times the weighted sum of the
    absolute differences of class probabilities and of box numbers, and of 1 − GIoU; minimal in total (Hungarian
    assignment), so that the confident queries choose first.

    Args:
        student_classes: (B, Q, C) logits.
        student_boxes: (B, Q, 4).
        teacher_classes: (B, Q, C) logits.
        teacher_boxes: (B, Q, 4).

    Returns:
        (B, Q) int64: position among the student's queries.
    """
    taught = teacher_classes.float().sigmoid()
    class_cost = torch.cdist(taught, student_classes.float().sigmoid(), p=1)  # (B, Q teacher, Q student)
    box_cost = torch.cdist(teacher_boxes.float(), student_boxes.float(), p=1)
    overlap = generalized_iou(teacher_boxes.float().unsqueeze(2), student_boxes.float().unsqueeze(1))
    cost = CLASS_COST * class_cost + BOX_GAIN * box_cost + GIOU_GAIN * (1 - overlap)
    cost = (cost * taught.amax(-1, keepdim=True)).nan_to_num(posinf=1e6).cpu().numpy()
    columns = [torch.from_numpy(linear_sum_assignment(one)[1]) for one in cost]  # rows come back in order
    return torch.stack(columns).to(student_classes.device)


def weighted_query_distillation(
    student_classes: Tensor, student_boxes: Tensor, teacher_classes: Tensor, teacher_boxes: Tensor
) -> Tensor:
    """Distillation weighted by the teacher's confidence, for queries that are matched already.

    Classes as in :func:`duet.losses.distillation.weighted_distillation`: binary cross-entropy against the teacher's
    probabilities minus the teacher's own entropy, summed. Boxes: 5 · Σ|Δ| + 2 · (1 − GIoU), weighted by the query's
    largest teacher probability. Both are divided by the summed teacher confidence (at least 1).

    Args:
        student_classes: (B, Q, C) logits.
        student_boxes: (B, Q, 4).
        teacher_classes: (B, Q, C) logits, constant.
        teacher_boxes: (B, Q, 4), constant.

    Returns:
        A scalar ≥ 0; 0 for equal outputs.
    """
    student_classes, student_boxes = student_classes.float(), student_boxes.float()
    teacher_classes, teacher_boxes = teacher_classes.float(), teacher_boxes.float()
    if teacher_classes.numel() == 0:
        return student_classes.sum() + student_boxes.sum()
    confidence = teacher_classes.sigmoid().amax(-1)  # (B, Q)
    apart = _apart(student_boxes, teacher_boxes)
    excess = class_excess(student_classes, teacher_classes)
    return (excess + (apart * confidence).sum()) / confidence.sum().clamp(min=1.0)


def paper_query_distillation(
    student_classes: Tensor, student_boxes: Tensor, teacher_classes: Tensor, teacher_boxes: Tensor
) -> Tensor:
    """The paper's terms on boxes without a distribution over bins: the softmax runs over the box's four numbers.

    Arguments and result as for :func:`weighted_query_distillation`; see
    :func:`duet.losses.distillation.filtered_distillation`.
    """
    boxes = student_boxes.unsqueeze(2), teacher_boxes.unsqueeze(2)  # (B, Q, 1, 4)
    return filtered_distillation(student_classes, teacher_classes, *boxes)


def lwf_query_distillation(
    student_classes: Tensor, student_boxes: Tensor, teacher_classes: Tensor, teacher_boxes: Tensor
) -> Tensor:
    """See :func:`duet.losses.distillation.lwf_distillation`: classes only."""
    return lwf_distillation(student_classes, teacher_classes, student_boxes, teacher_boxes)


def erd_query_distillation(
    student_classes: Tensor, student_boxes: Tensor, teacher_classes: Tensor, teacher_boxes: Tensor, alpha: float = 2.0
) -> Tensor:
    """Elastic response distillation (Feng et al., CVPR 2022) on boxes without a distribution.

    The class term as in :func:`duet.losses.distillation.erd_distillation`. Without a distribution nothing tells which
    boxes are sharp: 5 · Σ|Δ| + 2 · (1 − GIoU) is averaged over the queries that the class term chose.
    """
    student_classes, student_boxes = student_classes.float(), student_boxes.float()
    teacher_classes, teacher_boxes = teacher_classes.float(), teacher_boxes.float()
    if teacher_classes.numel() == 0:
        return student_classes.sum() + student_boxes.sum()
    sure = outstanding(teacher_classes.sigmoid().amax(-1), alpha)
    error = (student_classes - teacher_classes).square().sum(-1)
    return mean_where(error + _apart(student_boxes, teacher_boxes), sure)


def _apart(boxes: Tensor, others: Tensor) -> Tensor:
    """RT-DETR's box loss, pair by pair."""
    return BOX_GAIN * (boxes - others).abs().sum(-1) + GIOU_GAIN * (1 - generalized_iou(boxes, others))


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalized intersection over union (Rezatofighi et al., CVPR 2019), pair by pair.

    Args:
        boxes: (..., 4) as centre and size.
        others: (..., 4), broadcast against ``boxes``.

    Returns:
        (...) between −1 and 1; 1 for equal boxes.
    """
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    other_low, other_high = others[..., :2] - others[..., 2:] / 2, others[..., :2] + others[..., 2:] / 2
    overlap = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    union = boxes[..., 2:].prod(-1) + others[..., 2:].prod(-1) - overlap
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1)
    # A box without area is equal to itself, too.
    return (overlap + TINY) / (union + TINY) - (hull - union) / (hull + TINY)


QUERY_DISTILLATIONS = {
    "paper": paper_query_distillation,
    "weighted": weighted_query_distillation,
    "lwf": lwf_query_distillation,
    "erd": erd_query_distillation,
}
