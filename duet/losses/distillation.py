"""Distillation from the previous task's model, for heads with class logits and binned box distributions.

Shapes: ``class_logits`` (B, A, C), C the old classes; ``box_logits`` (B, A, 4, R), R bins for each of the four sides
of the box of an anchor. Both functions return 0 with a gradient graph when there is no anchor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def filtered_distillation(
    student_classes: Tensor,
    teacher_classes: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    quantile: float = 0.75,
) -> Tensor:
    """The paper's modified distillation, L*_cls + L*_bbox (DuET, supplement B, A12 to A16).

    Classes: squared error of the logits, summed over the old classes, averaged over the anchors whose largest teacher
    logit is at or above the quantile of the batch (the top quarter). Boxes: KL(student ‖ teacher) of the softmax over
    the bins, averaged over the sides whose variance over the teacher's logits is at or below the quantile (the three
    quarters with the least variance). Not stated in the paper and chosen here: one quantile over the whole batch and
    all levels, raw logits, the distribution logits as box values, the variance over the bins.

    Args:
        student_classes: (B, A, C) logits.
        teacher_classes: (B, A, C) logits, constant.
        student_boxes: (B, A, 4, R) logits.
        teacher_boxes: (B, A, 4, R) logits, constant.
        quantile: threshold of both filters.

    Returns:
        A scalar.
    """
    if teacher_classes.numel() == 0:
        return student_classes.sum() + student_boxes.sum()
    student_classes, student_boxes = student_classes.float(), student_boxes.float()
    teacher_classes, teacher_boxes = teacher_classes.float(), teacher_boxes.float()
    confidence = teacher_classes.amax(-1)  # (B, A)
    kept = (confidence >= _order_statistic(confidence, quantile, math.ceil)).float()
    error = (student_classes - teacher_classes).square().sum(-1)  # (B, A)
    class_loss = (error * kept).sum() / kept.sum()
    variance = teacher_boxes.var(-1, unbiased=False)  # (B, A, 4)
    steady = (variance <= _order_statistic(variance, quantile, math.floor)).float()
    log_student, log_teacher = student_boxes.log_softmax(-1), teacher_boxes.log_softmax(-1)
    divergence = (log_student.exp() * (log_student - log_teacher)).sum(-1)  # (B, A, 4)
    return class_loss + (divergence * steady).sum() / steady.sum()


def weighted_distillation(
    student_classes: Tensor, teacher_classes: Tensor, student_boxes: Tensor, teacher_boxes: Tensor
) -> Tensor:
    """Distillation weighted by the teacher's confidence; our own, not the paper's.

    Classes: binary cross-entropy of the old-class scores against the teacher's probabilities, minus the teacher's own
    entropy, so that it is zero for equal outputs; summed over anchors and classes. Boxes: KL(teacher ‖ student) of
    the bin distributions, averaged over the four sides, weighted by the anchor's largest teacher probability. Both are
    divided by the summed teacher confidence (at least 1), so that a weight keeps its meaning across image sizes and
    class counts.

    Args:
        student_classes: (B, A, C) logits.
        teacher_classes: (B, A, C) logits, constant.
        student_boxes: (B, A, 4, R) logits.
        teacher_boxes: (B, A, 4, R) logits, constant.

    Returns:
        A scalar ≥ 0.
    """
    student_classes, student_boxes = student_classes.float(), student_boxes.float()
    teacher_classes, teacher_boxes = teacher_classes.float(), teacher_boxes.float()
    if teacher_classes.numel() == 0:
        return student_classes.sum() + student_boxes.sum()
    confidence = teacher_classes.sigmoid().amax(-1)  # (B, A)
    log_teacher = teacher_boxes.log_softmax(-1)
    divergence = (log_teacher.exp() * (log_teacher - student_boxes.log_softmax(-1))).sum(-1).mean(-1)  # (B, A)
    excess = class_excess(student_classes, teacher_classes)
    return (excess + (divergence * confidence).sum()) / confidence.sum().clamp(min=1.0)


def lwf_distillation(
    student_classes: Tensor,
    teacher_classes: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    temperature: float = 2.0,
) -> Tensor:
    """Learning without forgetting (Li and Hoiem, ECCV 2016, equation 2), carried over to detectors.

    The original softens one softmax per image. A detector has independent sigmoid scores per anchor: the binary
    cross-entropy of the old-class logits divided by the temperature against the teacher's, less the teacher's own
    entropy, times the squared temperature, summed over anchors and classes and averaged over images. Boxes have no
    counterpart in the original and are not distilled.

    Args:
        student_classes: (B, A, C) logits.
        teacher_classes: (B, A, C) logits, constant.
        student_boxes: not used.
        teacher_boxes: not used.
        temperature: above 0.

    Returns:
        A scalar ≥ 0.
    """
    softened = class_excess(student_classes.float() / temperature, teacher_classes.float() / temperature)
    return temperature**2 * softened / max(len(student_classes), 1)


def erd_distillation(
    student_classes: Tensor,
    teacher_classes: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    alpha: float = 2.0,
    temperature: float = 10.0,
) -> Tensor:
    """Elastic response distillation (Feng et al., CVPR 2022, section 3.3).

    Classes: squared error of the logits over the anchors whose largest teacher probability exceeds the image's mean by
    ``alpha`` standard deviations, summed over classes, averaged over the chosen anchors. Boxes: KL(teacher ‖ student)
    of the bins at a temperature, times its square, over the sides' mean for the anchors whose largest bin probability
    (mean over the sides) exceeds the image's mean in the same way, averaged over them. Left out: the suppression of
    overlapping teacher boxes after the choice, which needs decoded boxes.

    Args:
        student_classes: (B, A, C) logits.
        teacher_classes: (B, A, C) logits, constant.
        student_boxes: (B, A, 4, R) logits.
        teacher_boxes: (B, A, 4, R) logits, constant.
        alpha: standard deviations above the mean.
        temperature: of the box distributions.

    Returns:
        A scalar ≥ 0.
    """
    student_classes, student_boxes = student_classes.float(), student_boxes.float()
    teacher_classes, teacher_boxes = teacher_classes.float(), teacher_boxes.float()
    if teacher_classes.numel() == 0:
        return student_classes.sum() + student_boxes.sum()
    sure = outstanding(teacher_classes.sigmoid().amax(-1), alpha)  # (B, A)
    error = (student_classes - teacher_classes).square().sum(-1)
    sharp = outstanding(teacher_boxes.softmax(-1).amax(-1).mean(-1), alpha)
    log_teacher = (teacher_boxes / temperature).log_softmax(-1)
    log_student = (student_boxes / temperature).log_softmax(-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean(-1) * temperature**2  # (B, A)
    return mean_where(error, sure) + mean_where(divergence, sharp)


def outstanding(values: Tensor, alpha: float) -> Tensor:
    """Which of an image's values exceed their mean by ``alpha`` standard deviations; (B, A) bool."""
    mean, deviation = values.mean(1, keepdim=True), values.std(1, keepdim=True, unbiased=False)
    return values > mean + alpha * deviation


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values; 0 with a gradient graph when none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def class_excess(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Binary cross-entropy against the teacher's probabilities minus the teacher's own entropy, summed.

    Args:
        student_logits: (...) logits.
        teacher_logits: (...) logits, constant.

    Returns:
        A scalar ≥ 0; 0 for equal logits.
    """
    target = teacher_logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(student_logits, target, reduction="sum")
    return cross_entropy - F.binary_cross_entropy_with_logits(teacher_logits, target, reduction="sum")


def _order_statistic(values: Tensor, quantile: float, rounding: Callable[[float], int]) -> Tensor:
    """The value below or above the interpolated quantile; the same mask as torch.quantile's, without its size limit."""
    flat = values.flatten()
    return flat.kthvalue(rounding(quantile * (flat.numel() - 1)) + 1).values
