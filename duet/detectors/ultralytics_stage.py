"""One stage of incremental training through the Ultralytics detection trainer.

The trainer's augmentation, AMP, EMA, schedulers, loggers and data-parallel workers are used as they are. What is added
stands in one place each: the losses in ``StageCriterion``, frozen parts and learning rates in ``StageTrainer``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from duet.config import DirectionalSettings, DistillationSettings
from duet.detectors.base import DomainStatistics, StageProgress
from duet.detectors.parallel_head import ParallelDetect
from duet.errors import InputError
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

    def _terms(self, outputs: dict, batch: dict):
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


def _detection_loss(model: nn.Module) -> Callable:
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


class StageTrainer(DetectionTrainer):
    """Ultralytics' detection trainer with a stage plan.

    The plan is taken from ``model.stage_plan``, so that it reaches data-parallel workers with the model. There is no
    validation inside a stage: detectors are scored by the learner, on slices.
    """

    def __init__(self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks: dict | None = None) -> None:
        super().__init__(cfg, overrides, _callbacks)
        self.plan = StagePlan()
        self.seen: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.steps_done = 0

    def _setup_train(self) -> None:
        self.plan = self.model.__dict__.pop("stage_plan", self.plan)
        # Ultralytics freezes by substring of the parameter's name; anchored prefixes cannot hit another layer.
        self.args.freeze = [name.removeprefix("model.").rstrip(".") for name in self.plan.frozen] or None
        super()._setup_train()
        model = unwrap_model(self.model)
        if self.plan.negatives == "new" and self.plan.old_classes and not isinstance(model.model[-1], ParallelDetect):
            weights = torch.ones(model.model[-1].nc, device=self.device)
            weights[: self.plan.old_classes] = 0.0
            model.class_weights = weights
        if self.plan.teacher is not None:
            self.plan.teacher.to(self.device).eval().requires_grad_(False)
            self.plan.teacher.model[-1].training = True  # raw outputs; its BatchNorms stay in eval mode
        # After the EMA copy was made: the copy must not carry a teacher.
        model.criterion = StageCriterion(_detection_loss(model), self.plan, model, self.seen)
        self._held = self._old_rows() if self.plan.hold_old_rows else []
        self._generator = torch.Generator().manual_seed(self.plan.seed)

    def build_optimizer(self, model: nn.Module, *args, **kwargs) -> torch.optim.Optimizer:
        """Ultralytics' optimizer; parameters of θ_s move into groups of their own with their learning rate."""
        optimizer = super().build_optimizer(model, *args, **kwargs)
        if self.plan.shared_lr_factor == 1.0:
            return optimizer
        shared = {
            id(value)
            for name, value in unwrap_model(model).named_parameters()
            if name.startswith(self.plan.shared_prefixes)
        }
        if not shared:
            raise RuntimeError(f"shared learning rate: no parameter starts with {self.plan.shared_prefixes}")
        for group in list(optimizer.param_groups):
            slow = [value for value in group["params"] if id(value) in shared]
            group["params"] = [value for value in group["params"] if id(value) not in shared]
            optimizer.add_param_group({**group, "params": slow, "lr": group["lr"] * self.plan.shared_lr_factor})
        return optimizer

    def _model_train(self) -> None:
        super()._model_train()
        if self.plan.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def preprocess_batch(self, batch: dict) -> dict:
        """Ultralytics' preprocessing, then domain-statistics replay on part of the batch."""
        batch = super().preprocess_batch(batch)
        if self.plan.past_domains and self.plan.own_domain is not None:
            recolour(
                batch["img"],
                self.plan.own_domain,
                self.plan.past_domains,
                self.plan.replay_share,
                self._generator,
            )
        return batch

    def optimizer_step(self) -> None:
        """One step; old class rows are put back, because weight decay moves what has no gradient."""
        if self._held:
            for tensor, rows in self._held:
                tensor.grad[: len(rows)] = 0
        super().optimizer_step()
        with torch.no_grad():
            for tensor, rows in self._held:
                tensor[: len(rows)] = rows

    def _old_rows(self) -> list[tuple[Tensor, Tensor]]:
        rows = [branch[-1] for branch in unwrap_model(self.model).model[-1].cv3]
        tensors = [tensor for layer in rows for tensor in (layer.weight, layer.bias)]
        return [(tensor, tensor.detach()[: self.plan.old_classes].clone()) for tensor in tensors]

    def validate(self) -> tuple[dict, float]:
        """No validation inside a stage; a finite constant keeps the trainer's NaN recovery and checkpoints at work."""
        self.best_fitness = 0.0
        return {}, 0.0

    def final_eval(self) -> None:
        """Nothing: the learner evaluates the merged detector."""

    def save_metrics(self, metrics: dict) -> None:
        """Write results.csv as Ultralytics does, keep the losses for the report, and refuse a dead loss."""
        self.history.append({name: float(value) for name, value in self.tloss.items()})
        broken = [name for name, value in self.history[-1].items() if value != value or abs(value) == float("inf")]
        if broken:
            raise RuntimeError(f"epoch {self.epoch + 1}: {broken[0]} is not finite; a smaller train.lr0 may help")
        for name in self._switched_on():
            if self.seen.get(name, 0.0) == 0.0:
                raise RuntimeError(f"epoch {self.epoch + 1}: the {name} loss is switched on and stayed exactly zero")
        super().save_metrics(metrics)

    def _switched_on(self) -> list[str]:
        plan = self.plan
        return [name for name, on in (("distill", plan.distillation), ("dc", plan.directional)) if on is not None]


def report_progress(trainer: StageTrainer) -> None:
    """Trainer callback: tell the stage's progress function about a finished step."""
    trainer.steps_done += 1
    if trainer.plan.progress is not None and RANK in {-1, 0}:
        trainer.plan.progress(
            StageProgress(
                step=trainer.steps_done,
                steps=len(trainer.train_loader) * trainer.epochs,
                epoch=trainer.epoch + 1,
                epochs=trainer.epochs,
                losses={name: float(value) for name, value in trainer.tloss.items()},
            )
        )


def recolour(
    images: Tensor,
    own: DomainStatistics,
    past: tuple[DomainStatistics, ...],
    share: float,
    generator: torch.Generator,
) -> None:
    """Give part of a batch the colour statistics of past domains, in place.

    Args:
        images: (B, 3, H, W), 0 to 1.
        own: statistics of the domain the images are from.
        past: statistics to draw from, one per image.
        share: share of the batch, rounded down.
        generator: of the choices.
    """
    count = int(len(images) * share)
    chosen = torch.randperm(len(images), generator=generator)[:count]
    domains = torch.randint(len(past), (count,), generator=generator)
    own_mean, own_std = (images.new_tensor(values).view(3, 1, 1) for values in (own.mean, own.std))
    for index, domain in zip(chosen.tolist(), domains.tolist()):
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (past[domain].mean, past[domain].std))
        images[index] = ((images[index] - own_mean) / own_std * std + mean).clamp(0, 1)


def run_stage(
    model: nn.Module, plan: StagePlan, overrides: dict, threads: int
) -> tuple[nn.Module, list[dict[str, float]], float]:
    """Train a copy-free stage.

    Args:
        model: Ultralytics detection model; its weights after the call are the last step's, not the average.
        plan: what the stage adds.
        overrides: settings of the Ultralytics trainer.
        threads: CPU threads; Ultralytics would leave one core idle.

    Returns:
        The averaged (EMA) network, the mean losses of each epoch, and the seconds of the training loop.
    """
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        trainer = StageTrainer(overrides=overrides)
        if trainer.ddp:
            raise InputError(f"train.device is '{overrides['device']}': a stage trains on one device so far")
        trainer.add_callback("on_train_batch_end", report_progress)
        model.stage_plan = plan
        trainer.model = model
        torch.set_num_threads(threads)
        started = time.perf_counter()
        trainer.train()
        return trainer.ema.ema, trainer.history, time.perf_counter() - started
    finally:
        LOGGER.setLevel(level)
        model.__dict__.pop("stage_plan", None)
        model.criterion = None
