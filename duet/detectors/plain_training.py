"""One stage by a plain loop, for detectors without a trainer of their own."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from duet import processes
from duet.config import TrainSettings
from duet.detectors.base import StageOutcome, StageProgress, StageRequest, refuse_several
from duet.detectors.module_detector import ModuleDetector
from duet.detectors.plain_data import Sample, TrainingPictures
from duet.detectors.stage_plan import AddedLosses, HeldRows, StagePlan, change_domains, not_finite

LARGEST_GRADIENT = 10.0  # norm that gradients are cut to, as in Ultralytics' trainer
STEPS_UNTIL_MOVED = 4  # before that teacher and student may rightly be equal


class PlainDetector(ModuleDetector):
    """A detector that the loop below trains: losses and outputs for batches of square inputs."""

    @abstractmethod
    def raw(self, model: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
        """What a network says of (B, 3, S, S) images before any threshold."""

    @abstractmethod
    def own_losses(
        self, images: Tensor, samples: list[Sample], outputs: Mapping[str, Tensor], first_class: int
    ) -> dict[str, Tensor]:
        """The detector's own loss terms; the class term is taken from class ``first_class`` on."""

    @abstractmethod
    def distill(
        self, images: Tensor, outputs: Mapping[str, Tensor], taught: Mapping[str, Tensor], plan: StagePlan
    ) -> Tensor:
        """Distillation of the student's outputs from the teacher's."""

    def train_stage(self, request: StageRequest) -> StageOutcome:
        """AdamW, Adam or SGD with warm-up and decay; the weights after the last step are kept."""
        refuse_several(self, request.train)
        torch.set_num_threads(processes.threads_of(request.train))
        started = time.perf_counter()
        losses = _Stage(self, request, self._plan(request)).run()
        self.model.eval().requires_grad_(True)
        self._image_size = request.train.image_size
        return StageOutcome(tuple(losses), time.perf_counter() - started)

    def squared_gradients(self, request: StageRequest) -> dict[str, Tensor]:
        """Image by image, without augmentation."""
        torch.set_num_threads(processes.threads_of(request.train))
        twin = self.clone()
        model = twin.model.eval().requires_grad_(True).to(request.train.device)
        named = dict(model.named_parameters())
        sums = {name: torch.zeros_like(value) for name, value in named.items()}
        pictures = TrainingPictures(request.data, request.train, request.seed, augment=False)
        for index in range(len(pictures)):
            images, samples = _on_device([pictures[index]], request.train.device)
            model.zero_grad()
            sum(twin.own_losses(images, samples, twin.raw(model, images), 0).values()).backward()
            for name, value in named.items():
                if value.grad is not None:
                    sums[name] += value.grad.square()
        return {name: (value / len(pictures)).cpu() for name, value in sums.items()}


@dataclass
class _Stage:
    """The state of one training."""

    detector: PlainDetector
    request: StageRequest
    plan: StagePlan

    def run(self) -> list[dict[str, float]]:
        settings, plan = self.request.train, self.plan
        self.model = self.detector.model.to(settings.device)
        _freeze(self.model, plan)
        if plan.teacher is not None:
            plan.teacher.to(settings.device).eval().requires_grad_(False)
        self.losses = AddedLosses(plan, self.model, self._distill, lambda images: 1.0)
        self.held = HeldRows(plan, self.model)
        self.optimizer = _optimizer(self.model, settings, self._weight_decay(), plan)
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.pictures = TrainingPictures(self.request.data, settings, self.request.seed)
        self.steps_per_epoch = -(-len(self.pictures) // settings.batch)
        return [self._epoch(number) for number in range(self.request.epochs)]

    def _epoch(self, number: int) -> dict[str, float]:
        self.pictures.epoch = number
        sums: dict[str, float] = {}
        for position, samples in enumerate(self._loader(number)):
            step = number * self.steps_per_epoch + position
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._rate(step)
            for name, value in self._step(samples).items():
                sums[name] = sums.get(name, 0.0) + value
            means = {name: value / (position + 1) for name, value in sums.items()}
            self._report(step + 1, number + 1, means)
        self._refuse_broken(means, number + 1)
        return means

    def _loader(self, number: int) -> DataLoader:
        generator = torch.Generator().manual_seed(self.request.seed * 1000 + number)
        batch = self.request.train.batch
        return DataLoader(self.pictures, batch, shuffle=True, generator=generator, collate_fn=list)

    def _step(self, samples: list[Sample]) -> dict[str, float]:
        plan = self.plan
        images, samples = _on_device(samples, self.request.train.device)
        taught = change_domains(images, plan, self.generator)
        _train_mode(self.model, plan)
        outputs = self.detector.raw(self.model, images)
        first = plan.old_classes if plan.negatives == "new" else 0
        own = self.detector.own_losses(images, samples, outputs, first)
        terms, listed = self.losses(outputs, taught)
        self.optimizer.zero_grad()
        sum([*own.values(), *(term.sum() for term in terms)]).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        self.held.before_step()
        self.optimizer.step()
        self.held.after_step()
        return {name: float(value.detach()) for name, value in {**own, **listed}.items()}

    def _distill(self, outputs: Mapping[str, Tensor], images: Tensor) -> Tensor:
        with torch.no_grad():
            taught = self.detector.raw(self.plan.teacher, images)
        return self.detector.distill(images, outputs, taught, self.plan)

    def _rate(self, step: int) -> float:
        """Learning rate of a step / its initial value: linear warm-up, then linear or cosine decay to ``lrf``."""
        settings, epochs = self.request.train, self.request.epochs
        warmup = min(settings.warmup_epochs, epochs / 2) * self.steps_per_epoch
        progress = step / (epochs * self.steps_per_epoch)
        decay = (1 + math.cos(math.pi * progress)) / 2 if settings.cos_lr else 1 - progress
        return (settings.lrf + (1 - settings.lrf) * decay) * min(1.0, (step + 1) / max(warmup, 1.0))

    def _weight_decay(self) -> float:
        own = self.request.method.weight_decay
        return own if own is not None and self.request.teacher is not None else self.request.train.weight_decay

    def _report(self, step: int, epoch: int, means: Mapping[str, float]) -> None:
        if self.plan.progress is not None:
            epochs = self.request.epochs
            rates = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
            self.plan.progress(StageProgress(step, epochs * self.steps_per_epoch, epoch, epochs, means, rates))

    def _refuse_broken(self, means: Mapping[str, float], epoch: int) -> None:
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise not_finite(broken[0], epoch, self.request.train.lr0)
        if epoch == self.request.epochs and epoch * self.steps_per_epoch >= STEPS_UNTIL_MOVED:
            self.losses.refuse_dead(epoch * self.steps_per_epoch)


def _on_device(samples: list[Sample], device: str) -> tuple[Tensor, list[Sample]]:
    moved = [Sample(s.image, s.boxes_xyxy.to(device), s.labels.to(device)) for s in samples]
    return torch.stack([sample.image for sample in samples]).to(device), moved


def _freeze(model: nn.Module, plan: StagePlan) -> None:
    for name, value in model.named_parameters():
        value.requires_grad_(not name.startswith(plan.frozen))


def _train_mode(model: nn.Module, plan: StagePlan) -> None:
    """Training mode, but for BatchNorms whose statistics stand still."""
    model.train()
    for name, module in model.named_modules():
        still = plan.freeze_batch_norm or f"{name}.".startswith(plan.frozen)
        if isinstance(module, nn.BatchNorm2d) and still:
            module.eval()


def _optimizer(
    model: nn.Module, settings: TrainSettings, weight_decay: float, plan: StagePlan
) -> torch.optim.Optimizer:
    """Groups by learning rate, and with weight decay or, for biases and normalisation, without."""
    groups = [group for group in _groups(model, settings, weight_decay, plan) if group["params"]]
    if settings.optimizer == "SGD":
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.momentum > 0)
    kind = torch.optim.AdamW if settings.optimizer == "AdamW" else torch.optim.Adam
    return kind(groups, betas=(settings.momentum, 0.999))


def _groups(model: nn.Module, settings: TrainSettings, weight_decay: float, plan: StagePlan) -> Iterator[dict]:
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    rates = plan.learning_rates([name for name, _ in model.named_parameters()])
    factors = {name: rates[name] for name in trained}
    for factor in dict.fromkeys(factors.values()):
        for decayed in (True, False):
            named = [name for name in trained if factors[name] == factor and (trained[name].ndim > 1) == decayed]
            yield {
                "params": [trained[name] for name in named],
                "lr": settings.lr0 * factor,
                "initial_lr": settings.lr0 * factor,
                "weight_decay": weight_decay if decayed else 0.0,
            }
