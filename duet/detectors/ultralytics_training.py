"""One stage of incremental training through the Ultralytics trainers.

The trainers' augmentation, AMP, EMA, schedulers, loggers and data-parallel workers are used as they are. What is added
stands in one place each: the losses in ``StageLoss``, frozen parts and learning rates in ``StageTraining``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils import DEFAULT_CFG, RANK
from ultralytics.utils.torch_utils import unwrap_model

from duet import processes
from duet.detectors.base import StageProgress
from duet.detectors.stage_plan import AddedLosses, HeldRows, StagePlan, change_domains, not_finite
from duet.detectors.ultralytics_processes import ProcessGroupTraining

# At the first step teacher and student are equal and the warm-up's learning rate is zero, so that both added losses
# are rightly zero; after a few steps they cannot be.
STEPS_UNTIL_MOVED = 4
SURELY_MOVED = 50

SEED_STEP = 1_000_003  # each process re-colours and varies other pictures
TAUGHT = "taught"  # the pictures of a batch as the teacher sees them


class StageLoss:
    """Stands in for ``model.loss``: the detector's own loss plus what the stage adds, each listed by name.

    Args:
        model: Ultralytics detection model; its head's raw outputs are caught as they pass.
        added: the losses of the stage.
        factor: of the total loss.
    """

    def __init__(self, model: nn.Module, added: AddedLosses, factor: float = 1.0) -> None:
        self.model, self.added, self.factor = model, added, factor
        self.outputs: Any = None
        self.catch = model.model[-1].register_forward_hook(self._keep)

    def __call__(self, batch: dict, preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss (a vector of terms) and its items by name."""
        loss, items = type(self.model).loss(self.model, batch, preds)
        terms, listed = self.added(self.outputs, batch[TAUGHT])
        self.outputs = None
        return torch.cat([loss.reshape(-1), *terms]) * self.factor, {**items, **listed}

    def _keep(self, head: nn.Module, inputs: tuple, outputs: Any) -> None:
        self.outputs = outputs


class StageTraining(ProcessGroupTraining):
    """A stage plan for an Ultralytics detection trainer; comes before the trainer's class in a family's own trainer.

    The plan is taken from ``model.stage_plan``, so that it reaches data-parallel workers with the model. There is no
    validation inside a stage: detectors are scored by the learner, on slices.
    """

    def __init__(self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks: dict | None = None) -> None:
        super().__init__(cfg, overrides, _callbacks)
        self.plan = StagePlan()
        self.history: list[dict[str, float]] = []
        self.steps_done = 0

    def own_loss(self, model: nn.Module) -> Callable:
        """The criterion of the detector's own loss under the plan; a family overrides it."""
        return model.init_criterion()

    def distill(self, outputs: Any, taught: Any) -> Tensor:
        """Distillation of the student's raw outputs from the teacher's; a family defines it."""
        raise NotImplementedError

    def loss_scale(self, images: Tensor) -> float:
        """Factor of the added losses; the YOLO criterion multiplies its own by the batch size."""
        return 1.0

    def _setup_train(self) -> None:
        self.plan = self.model.__dict__.pop("stage_plan", self.plan)
        # Ultralytics freezes by substring of the parameter's name; anchored prefixes cannot hit another layer.
        self.args.freeze = [name.removeprefix("model.").rstrip(".") for name in self.plan.frozen] or None
        super()._setup_train()
        model = unwrap_model(self.model)
        if self.plan.teacher is not None:
            as_teacher(self.plan.teacher.to(self.device))
        # After the EMA copy was made: the copy must not carry a teacher.
        model.criterion = self.own_loss(model)
        self._added = AddedLosses(self.plan, model, self._distill_batch, self.loss_scale)
        model.loss = StageLoss(model, self._added, self.loss_factor())
        self._held = HeldRows(self.plan, model)
        self._generator = torch.Generator().manual_seed(self.plan.seed + SEED_STEP * processes.rank())

    def _distill_batch(self, outputs: Any, images: Tensor) -> Tensor:
        with torch.no_grad():
            taught = self.plan.teacher(images)
        return self.distill(outputs, taught)

    def build_optimizer(self, model: nn.Module, *args, **kwargs) -> torch.optim.Optimizer:
        """The optimizer of Ultralytics; θ_s and class rows move into groups with learning rates of their own."""
        optimizer = super().build_optimizer(model, *args, **kwargs)
        named = dict(unwrap_model(model).named_parameters())
        rates = self.plan.learning_rates(list(named))
        for factor in dict.fromkeys(rates.values()):
            if factor != 1.0:
                own_rate(optimizer, [value for name, value in named.items() if rates[name] == factor], factor)
        return optimizer

    def _model_train(self) -> None:
        super()._model_train()
        if self.plan.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def preprocess_batch(self, batch: dict) -> dict:
        """Ultralytics' preprocessing, then domain-statistics replay and varied appearance on part of the batch."""
        batch = super().preprocess_batch(batch)
        batch[TAUGHT] = change_domains(batch["img"], self.plan, self._generator)
        return batch

    def optimizer_step(self) -> None:
        """One step in which held rows stand still."""
        self._held.before_step()
        super().optimizer_step()
        self._held.after_step()

    def validate(self) -> tuple[dict, float]:
        """No validation inside a stage."""
        self.best_fitness = 0.0
        return {}, 0.0

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """A stage writes no checkpoints to go back to; ``save_metrics`` says which loss is not finite."""
        return False

    def final_eval(self) -> None:
        """Nothing: the learner evaluates the merged detector."""

    def save_metrics(self, metrics: dict) -> None:
        """Write results.csv as Ultralytics does, keep the losses for the report, and refuse a dead loss."""
        self.history.append({name: float(value) for name, value in self.tloss.items()})
        broken = [name for name, value in self.history[-1].items() if value != value or abs(value) == float("inf")]
        if broken:
            raise not_finite(broken[0], self.epoch + 1, self.args.lr0)
        last = self.epoch + 1 >= self.epochs
        if self.steps_done >= (STEPS_UNTIL_MOVED if last else SURELY_MOVED):
            self._added.refuse_dead(self.steps_done)
        super().save_metrics(metrics)


def raw_outputs(model: nn.Module) -> None:
    """Make a frozen network give raw outputs: its head as in training, BatchNorm and dropout as at inference."""
    model.eval().requires_grad_(False)
    for module in model.model[-1].modules():
        module.training = not isinstance(module, (nn.BatchNorm2d, nn.Dropout))


def as_teacher(model: nn.Module) -> None:
    """Make a frozen network fast, and give raw outputs: BatchNorm goes into the convolutions, on a CPU channels last.

    Its outputs differ from the network's by rounding alone.
    """
    model.eval().fuse(verbose=False)
    if next(model.parameters()).device.type == "cpu":
        model.to(memory_format=torch.channels_last)
    raw_outputs(model)


def report_progress(trainer: StageTraining) -> None:
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
                learning_rates={f"lr/pg{i}": group["lr"] for i, group in enumerate(trainer.optimizer.param_groups)},
            )
        )


def own_rate(optimizer: torch.optim.Optimizer, values: Sequence[Tensor], factor: float) -> None:
    """Give parameters a learning rate of their own, as a factor of their group's; the rest of the group's stays."""
    moved = {id(value) for value in values}
    for group in list(optimizer.param_groups):
        apart = [value for value in group["params"] if id(value) in moved]
        if apart:
            group["params"] = [value for value in group["params"] if id(value) not in moved]
            optimizer.add_param_group({**group, "params": apart, "lr": group["lr"] * factor})
