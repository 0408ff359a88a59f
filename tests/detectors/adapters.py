"""The adapters that the contract suite runs over, one entry each, and how a test looks into their networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from duet.config import DistillationSettings
from duet.detectors.base import Detector
from duet.detectors.families import load_pretrained
from duet.detectors.rtdetr_training import RtdetrStageTrainer
from duet.detectors.stage_plan import StagePlan
from duet.detectors.ultralytics_training import raw_outputs
from duet.detectors.yolo_training import YoloStageTrainer


@dataclass(frozen=True)
class Adapter:
    """One family under test.

    Args:
        architecture: what :func:`load_pretrained` builds without any weights.
        outputs: (network, images) → class scores or logits (B, A, C) and boxes (B, A, 4), at inference, before any
            threshold.
        distill: (student, teacher, images, kind) → the distillation loss, with a gradient graph.
    """

    architecture: str
    outputs: Callable[[Detector, Tensor], tuple[Tensor, Tensor]]
    distill: Callable[[Detector, Detector, Tensor, str], Tensor]

    def build(self) -> Detector:
        """The detector with random weights."""
        return load_pretrained(self.architecture)


def _yolo_outputs(detector: Detector, images: Tensor) -> tuple[Tensor, Tensor]:
    values = copy.deepcopy(detector.model).eval()(images)[0].transpose(1, 2)
    return values[..., 4:], values[..., :4]


def _rtdetr_outputs(detector: Detector, images: Tensor) -> tuple[Tensor, Tensor]:
    boxes, logits, *_ = copy.deepcopy(detector.model).eval()(images)[1]
    return logits[-1], boxes[-1]


def _fcos_outputs(detector: Detector, images: Tensor) -> tuple[Tensor, Tensor]:
    values = detector.raw(copy.deepcopy(detector.model).eval(), images)
    return values["cls_logits"], values["bbox_regression"]


def _plan(teacher: Detector, kind: str) -> StagePlan:
    network = copy.deepcopy(teacher.model)
    return StagePlan(teacher=network, old_classes=len(teacher.classes), distillation=DistillationSettings(kind=kind))


def _ultralytics_distill(trainer: type) -> Callable[[Detector, Detector, Tensor, str], Tensor]:
    def distill(student: Detector, teacher: Detector, images: Tensor, kind: str) -> Tensor:
        plan = _plan(teacher, kind)
        raw_outputs(plan.teacher)
        raw_outputs(student.model)
        student.model.requires_grad_(True)
        with torch.no_grad():
            taught = plan.teacher(images)
        return trainer.distill(SimpleNamespace(plan=plan), student.model(images), taught)

    return distill


def _fcos_distill(student: Detector, teacher: Detector, images: Tensor, kind: str) -> Tensor:
    plan = _plan(teacher, kind)
    with torch.no_grad():
        taught = student.raw(plan.teacher.eval(), images)
    return student.distill(images, student.raw(student.model.eval(), images), taught, plan)


ADAPTERS = {
    "yolo": Adapter("yolo11n.yaml", _yolo_outputs, _ultralytics_distill(YoloStageTrainer)),
    "rtdetr": Adapter("rtdetr-tiny.yaml", _rtdetr_outputs, _ultralytics_distill(RtdetrStageTrainer)),
    "fcos": Adapter("fcos-tiny.yaml", _fcos_outputs, _fcos_distill),
}
