"""What a stage adds to an Ultralytics training, and the loss that adds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from duet.config import DirectionalSettings, DistillationSettings
from duet.detectors.base import DomainStatistics, StageProgress
from duet.detectors.parallel_head import ParallelDetect
from duet.losses.directional import directional_consistency
from duet.losses.distillation import filtered_distillation, weighted_distillation

DISTILLATIONS = {"paper": filtered_distillation, "weighted": weighted_distillation}


@dataclass
class StagePlan:
    """What a stage adds to a plain training; travels with the model into data-parallel workers.

    Args:
        teacher: frozen network of the previous task, or None.
        old_classes: number of classes that the teacher knows.
        distillation: settings, or None.
        directional: settings, or None.
        previous: θ_(t−1) by parameter name.
        direction: v by parameter name.
        negatives: ``new`` leaves the old classes out of the detector's own class loss.
        hold_old_rows: keep the old class rows at their values during the stage.
        frozen: prefixes of parameter names that stand still, BatchNorm statistics included.
        freeze_batch_norm: keep all BatchNorm statistics while the weights train.
        shared_prefixes: prefixes of θ_s, for the learning-rate factor.
        shared_lr_factor: learning rate of θ_s / lr0.
        past_domains, own_domain, replay_share: domain-statistics replay.
        seed: of the replay's choices.
        progress: called after every step.
    """

    teacher: nn.Module | None = None
    old_classes: int = 0
    distillation: DistillationSettings | None = None
    directional: DirectionalSettings | None = None
    previous: Mapping[str, Tensor] = field(default_factory=dict)
    direction: Mapping[str, Tensor] = field(default_factory=dict)
    negatives: str = "all"
    hold_old_rows: bool = False
    frozen: tuple[str, ...] = ()
    freeze_batch_norm: bool = False
    shared_prefixes: tuple[str, ...] = ()
    shared_lr_factor: float = 1.0
    past_domains: tuple[DomainStatistics, ...] = ()
    own_domain: DomainStatistics | None = None
    replay_share: float = 0.0
    seed: int = 0
    progress: Callable[[StageProgress], None] | None = None


class StageCriterion:
    """The detector's own loss plus distillation and directional consistency, each listed by name.

    Like Ultralytics' own terms, the added ones are multiplied by the batch size in the loss and listed without it.
    """

    def __init__(self, base: Callable, plan: StagePlan, model: nn.Module, seen: dict[str, float]) -> None:
        self.base, self.plan, self.seen = base, plan, seen
        self.current, self.previous, self.direction = _aligned(plan, model) if plan.directional else ([], [], [])

    def __call__(self, outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss (a vector of terms) and its items by name."""
        loss, items = self.base(outputs, batch)
        extra: list[Tensor] = []
        for name, value, weight in self._terms(outputs, batch):
            extra.append((weight * value * len(batch["img"])).view(1))
            items[f"{name}_loss"] = value.detach()
            items[f"{name}_weighted"] = weight * value.detach()
            self.seen[name] = max(self.seen.get(name, 0.0), float(value.detach()))
        return torch.cat([loss, *extra]), items

    def _terms(self, outputs: dict, batch: dict) -> Iterator[tuple[str, Tensor, float]]:
        if self.plan.distillation is not None:
            settings = self.plan.distillation
            yield "distill", self._distill(outputs, batch["img"], settings.kind), settings.weight
        if self.plan.directional is not None:
            settings = self.plan.directional
            value = directional_consistency(self.current, self.previous, self.direction, settings.granularity)
            yield "dc", value, settings.weight

    def _distill(self, outputs: dict, images: Tensor, kind: str) -> Tensor:
        with torch.no_grad():
            taught = self.plan.teacher(images)
        old, bins = self.plan.old_classes, self.plan.teacher.model[-1].reg_max
        return DISTILLATIONS[kind](*_pairs(outputs, taught, old, bins))


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
    # A class that a head does not have: a logit that means "no" in student and teacher alike.
    padded = [
        nn.functional.pad(head["scores"], (0, 0, 0, width - head["scores"].shape[1]), value=-20.0) for head in heads
    ]
    return torch.cat(padded, 2).transpose(1, 2)


def _box_logits(heads: list[dict], bins: int) -> Tensor:
    return torch.cat([head["boxes"] for head in heads], 2).transpose(1, 2).unflatten(2, (4, bins))


def detection_loss(model: nn.Module) -> Callable:
    """The detector's own loss; with parallel heads that of the last one, on its own classes."""
    loss, head = model.init_criterion(), model.model[-1]
    if not isinstance(head, ParallelDetect):
        return loss
    last = head.heads[-1]
    first = head.nc - last.nc
    loss.nc, loss.no, loss.assigner.num_classes = last.nc, last.no, last.nc

    def of_last_head(outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(outputs, {**batch, "cls": batch["cls"] - first})

    return of_last_head


def _aligned(plan: StagePlan, model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    parameters = dict(model.named_parameters())
    missing = [key for key in plan.previous if key not in parameters or key not in plan.direction]
    if missing or not plan.previous:
        raise RuntimeError(
            f"directional consistency: {len(missing)} of {len(plan.previous)} shared parameters match nothing in the "
            f"model{', for example ' + repr(missing[0]) if missing else ''}"
        )
    keys = [key for key in plan.previous if parameters[key].requires_grad]
    device = next(model.parameters()).device
    return (
        [parameters[key] for key in keys],
        [plan.previous[key].to(device) for key in keys],
        [plan.direction[key].to(device) for key in keys],
    )
