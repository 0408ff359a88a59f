"""One stage of incremental training through the Ultralytics detection trainer.

The trainer's augmentation, AMP, EMA, schedulers, loggers and data-parallel workers are used as they are. What is added
stands in one place each: the losses in ``StageCriterion``, frozen parts and learning rates in ``StageTrainer``.
"""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from duet.detectors.base import DomainStatistics, StageProgress
from duet.detectors.parallel_head import ParallelDetect
from duet.detectors.ultralytics_losses import StageCriterion, StagePlan, detection_loss

# At the first step teacher and student are equal and the warm-up's learning rate is zero, so that both added losses
# are rightly zero; after a few steps they cannot be.
STEPS_UNTIL_MOVED = 4
SURELY_MOVED = 50


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
        model.criterion = StageCriterion(detection_loss(model), self.plan, model, self.seen)
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
        last = self.epoch + 1 >= self.epochs
        if self.steps_done >= (STEPS_UNTIL_MOVED if last else SURELY_MOVED):
            self._refuse_dead_losses()
        super().save_metrics(metrics)

    def _refuse_dead_losses(self) -> None:
        for name in self._switched_on():
            if self.seen.get(name, 0.0) == 0.0:
                raise RuntimeError(
                    f"the {name} loss is switched on and stayed exactly zero for {self.steps_done} steps; "
                    f"nothing of the model it holds on to has moved"
                )

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
