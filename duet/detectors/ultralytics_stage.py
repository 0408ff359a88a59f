"""A stage as a job for one process or several: it carries all that the training needs."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from duet import processes
from duet.detectors.base import StageRequest
from duet.detectors.stage_plan import StagePlan
from duet.detectors.ultralytics_processes import whole_network
from duet.detectors.ultralytics_quiet import quiet
from duet.detectors.ultralytics_training import StageTraining, raw_outputs, report_progress

# Every image once and alone, as it is.
ONE_BY_ONE = {
    "batch": 1,
    "nbs": 1,
    "epochs": 1,
    "mosaic": 0.0,
    "fliplr": 0.0,
    "translate": 0.0,
    "scale": 0.0,
    "hsv_h": 0.0,
    "hsv_s": 0.0,
    "hsv_v": 0.0,
}


@dataclass(frozen=True)
class TrainedStage:
    """What a training gives.

    Args:
        network: with the averaged (EMA) weights.
        losses: mean losses of each epoch; with several processes those of the first one's images.
        seconds: of the training loop.
    """

    network: nn.Module
    losses: list[dict[str, float]]
    seconds: float


@dataclass(frozen=True)
class StageJob:
    """The training of a stage.

    Args:
        trainer: the family's trainer.
        model: Ultralytics detection model; its weights after the call are the last step's, not the average.
        plan: what the stage adds.
        overrides: settings of the Ultralytics trainer.
        threads: CPU threads; Ultralytics would leave one core idle.
    """

    trainer: type[StageTraining]
    model: nn.Module
    plan: StagePlan
    overrides: dict
    threads: int

    def run(self) -> TrainedStage:
        """Train in all processes."""
        others = replace(self, plan=replace(self.plan, progress=None))
        return processes.run_together(self.take_part, others.take_part)

    def take_part(self) -> TrainedStage:
        """Train in this process, with the others if there are any."""
        with quiet(), _own_folder(self.overrides) as overrides:
            try:
                trainer = self.trainer(overrides=overrides)
                trainer.add_callback("on_train_batch_end", report_progress)
                self.model.stage_plan = self.plan
                if trainer.device.type == "cpu":  # convolutions there are faster in this layout
                    self.model.to(memory_format=torch.channels_last)
                trainer.model = self.model
                torch.set_num_threads(self.threads)
                started = time.perf_counter()
                trainer.train()
                return TrainedStage(whole_network(trainer), trainer.history, time.perf_counter() - started)
            finally:
                _restore(self.model)


@dataclass(frozen=True)
class GradientJob:
    """The squared gradient of the detector's own loss by parameter name, mean over the training images.

    Args:
        trainer: the family's trainer.
        model: Ultralytics detection model; used up.
        overrides: settings of the Ultralytics trainer; batch and augmentation are replaced.
        threads: CPU threads.
    """

    trainer: type[StageTraining]
    model: nn.Module
    overrides: dict
    threads: int

    def run(self) -> dict[str, Tensor]:
        """Compute in all processes."""
        return processes.run_together(self.take_part, self.take_part)

    def take_part(self) -> dict[str, Tensor]:
        """Each process takes its share of the images; all get the mean over all of them."""
        model = self.model
        with quiet(), _own_folder(self.overrides) as overrides:
            trainer = self.trainer(overrides={**overrides, **ONE_BY_ONE})
            trainer.model = model
            trainer.stay_alone()
            trainer._setup_train()
            torch.set_num_threads(self.threads)
            raw_outputs(model)
            model.training = True  # for Ultralytics' loss, which asks the outermost module whether outputs are raw
            model.requires_grad_(True)
            named = dict(model.named_parameters())
            sums = {name: torch.zeros_like(value) for name, value in named.items()}
            for batch in _own_share(trainer.train_loader):
                model.zero_grad()
                model(trainer.preprocess_batch(batch))[0].sum().backward()
                for name, value in named.items():
                    if value.grad is not None:
                        sums[name] += value.grad.square()
        processes.add_up(list(sums.values()))
        return {name: (value / len(trainer.train_loader.dataset)).cpu() for name, value in sums.items()}


def _own_share(loader: DataLoader) -> DataLoader:
    """Every image of the set in exactly one process, alone; a distributed sampler repeats some to even the shares."""
    own = range(processes.rank(), len(loader.dataset), processes.started())
    return DataLoader(
        Subset(loader.dataset, own), batch_size=1, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )


@contextlib.contextmanager
def _own_folder(overrides: dict) -> Iterator[dict]:
    """The settings as they are in the first process; the others must not touch what it writes."""
    if processes.rank() == 0:
        yield overrides
        return
    with tempfile.TemporaryDirectory() as folder:
        yield {**overrides, "project": folder}


def _restore(model: nn.Module) -> None:
    """Take the stage's losses, plan and memory layout off a network."""
    stage_loss = model.__dict__.pop("loss", None)
    if stage_loss is not None:
        stage_loss.catch.remove()
    model.__dict__.pop("stage_plan", None)
    model.__dict__.pop("class_weights", None)
    model.criterion = None
    model.to(memory_format=torch.contiguous_format)


def trainer_settings(request: StageRequest) -> dict:
    """The Ultralytics trainer's settings for a stage."""
    settings = request.train
    later = request.teacher is not None and request.method.weight_decay is not None
    return {
        "model": "yolo11n.yaml",  # only a label: the network is handed over as a module
        "data": str(request.data),
        "epochs": request.epochs,
        "batch": settings.batch,
        "nbs": settings.batch,
        "imgsz": settings.image_size,
        "optimizer": settings.optimizer,
        "lr0": settings.lr0,
        "lrf": settings.lrf,
        "cos_lr": settings.cos_lr,
        "momentum": settings.momentum,
        "weight_decay": request.method.weight_decay if later else settings.weight_decay,
        "warmup_epochs": min(settings.warmup_epochs, request.epochs / 2),
        "warmup_bias_lr": 0.0,
        "mosaic": settings.mosaic,
        "close_mosaic": settings.close_mosaic,
        "fliplr": settings.fliplr,
        "translate": settings.translate,
        "scale": settings.scale,
        "hsv_h": settings.hsv_h,
        "hsv_s": settings.hsv_s,
        "hsv_v": settings.hsv_v,
        "device": settings.device,
        "workers": settings.workers,
        "amp": settings.amp,
        "seed": request.seed,
        "deterministic": True,
        "project": str(request.folder.parent.resolve()),
        "name": request.folder.name,
        "exist_ok": True,
        "plots": False,
        "val": False,
        "save": False,
        "verbose": False,
        "patience": 0,
    }
