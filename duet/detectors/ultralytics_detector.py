"""What all detectors of Ultralytics share behind the detector contract."""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from ultralytics.engine.predictor import BasePredictor
from ultralytics.nn.tasks import DetectionModel

from duet.config import EvaluationSettings, MethodSettings
from duet.detectors.base import Detections, Detector, StageOutcome, StageRequest, StateSplit
from duet.detectors.stage_plan import StagePlan, stage_plan
from duet.detectors.ultralytics_predict import letterboxed, predict_images
from duet.detectors.ultralytics_training import StageTraining, run_stage, squared_gradients, trainer_settings


class UltralyticsDetector(Detector):
    """A detection network of Ultralytics whose head's class rows grow (head policy ``rows``).

    θ_s is everything below the last module, θ_τ the last module: DuET, section 4.1.

    Args:
        model: Ultralytics detection model.
    """

    family: ClassVar[str]
    trainer: ClassVar[type[StageTraining]]
    predictor: ClassVar[type[BasePredictor]]
    stretched: ClassVar[bool] = False  # whether inputs are stretched to a square instead of letterboxed

    def __init__(self, model: DetectionModel) -> None:
        self.model = model.float().requires_grad_(True)  # checkpoints are stored without
        self._image_size: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return tuple(self.model.names[index] for index in range(len(self.model.names)))

    @property
    def image_size(self) -> int | None:
        """Side of the training input in pixels."""
        return self._image_size

    @property
    def head(self) -> nn.Module:
        """The last module."""
        return self.model.model[-1]

    @property
    def head_prefix(self) -> str:
        """What the names of the head's tensors start with."""
        return f"model.{len(self.model.model) - 1}."

    def split(self, shared_towers: bool = False) -> StateSplit:
        """Backbone and neck are shared, the head is task-specific, or only its class rows."""
        keys = tuple(self.model.state_dict())
        rows = frozenset(self._rows())
        task = tuple(key for key in keys if key.startswith(self.head_prefix) and (key in rows or not shared_towers))
        own = frozenset(task)
        shared = tuple(key for key in keys if key not in own)
        return StateSplit(shared, task, frozenset(name for name, _ in self.model.named_parameters()))

    def state(self) -> dict[str, Tensor]:
        """Detached copies of all tensors on the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all tensors."""
        try:
            self.model.load_state_dict(dict(state), strict=True)
        except RuntimeError as error:
            raise ValueError(f"state does not fit the detector: {_first_line(error)}") from error

    def clone(self) -> Self:
        """An independent copy."""
        return self._wrapping(copy.deepcopy(self.model))

    def with_classes(self, classes: Sequence[str], seed: int) -> Self:
        """Fresh rows for these classes on the towers as they are."""
        return self._with_rows(classes, seed)

    def grown(self, new_classes: Sequence[str], seed: int, head: str) -> Self:
        """Append class rows."""
        self._refuse_known(new_classes)
        return self._with_rows((*self.classes, *new_classes), seed, keep=len(self.classes))

    def merged_head(self, previous: Mapping[str, Tensor], method: MethodSettings) -> dict[str, Tensor]:
        """Old class rows and towers by the method's policies, new class rows from training."""
        current, rows = self.state(), frozenset(self._rows())
        merged: dict[str, Tensor] = {}
        for key in self.split(method.towers == "shared").task:
            value = current[key]
            if key in rows:
                if method.old_rows == "restore":
                    value = torch.cat([previous[key], value[len(previous[key]) :]])
            elif method.towers == "old":
                value = previous[key].clone()
            elif method.towers == "merge" and value.is_floating_point():
                value = torch.lerp(previous[key], value, 0.5)
            merged[key] = value
        return merged

    def train_stage(self, request: StageRequest) -> StageOutcome:
        """Train through the Ultralytics trainer and take over its EMA weights."""
        threads = request.train.threads or os.cpu_count() or 1
        plan, settings = self._plan(request), trainer_settings(request)
        averaged, losses, seconds = run_stage(self.trainer, self.model, plan, settings, threads)
        self.model.load_state_dict(averaged.float().state_dict())
        self.model.requires_grad_(True)
        self._image_size = request.train.image_size
        return StageOutcome(tuple(losses), seconds)

    def squared_gradients(self, request: StageRequest) -> dict[str, Tensor]:
        """Through the Ultralytics trainer's data and loss."""
        threads = request.train.threads or os.cpu_count() or 1
        return squared_gradients(self.trainer, self.clone().model, trainer_settings(request), threads)

    def predict(
        self, images: Sequence[Path], image_size: int, settings: EvaluationSettings
    ) -> Iterator[tuple[Path, Detections]]:
        """Ultralytics' own predictor, so that the boxes are those that a deployed checkpoint gives."""
        yield from predict_images(self.predictor, self.model, self.classes, images, image_size, settings)

    @torch.no_grad()
    def estimate_batch_norm(self, images: Iterable[Path], image_size: int) -> None:
        """Re-estimate running means and variances as averages over the given images."""
        from merging.batch_norm import reestimate

        reestimate(self.model, letterboxed(images, image_size, self.stretched))

    def save_checkpoint(self, path: Path) -> None:
        """A plain Ultralytics checkpoint in float32; ``YOLO(path)`` opens it without this package."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        model.criterion = None
        model.args = {"imgsz": self.image_size or 640, "task": "detect"}
        model.task = "detect"
        torch.save(
            {
                "model": model,
                "ema": None,
                "epoch": -1,
                "train_args": {"imgsz": self.image_size or 640, "task": "detect"},
            },
            path,
        )

    @abstractmethod
    def _rows(self) -> tuple[str, ...]:
        """Names of the head's tensors with one row per class."""

    @abstractmethod
    def _resize_rows(self, head: nn.Module, count: int, keep: int, generator: torch.Generator) -> None:
        """Give a head ``count`` classes, of which the first ``keep`` are the old ones, in place."""

    def _wrapping(self, model: DetectionModel) -> Self:
        detector = type(self)(model)
        detector._image_size = self._image_size
        return detector

    def _refuse_known(self, new_classes: Sequence[str]) -> None:
        known = [name for name in new_classes if name in self.classes]
        if known:
            raise ValueError(f"the detector already has class '{known[0]}'")

    def _with_rows(self, classes: Sequence[str], seed: int, keep: int = 0) -> Self:
        model = copy.deepcopy(self.model)
        self._resize_rows(model.model[-1], len(classes), keep, torch.Generator().manual_seed(seed))
        name_classes(model, classes)
        return self._wrapping(model)

    def _plan(self, request: StageRequest) -> StagePlan:
        teacher = copy.deepcopy(request.teacher.model) if request.teacher is not None else None
        body = tuple(f"model.{index}." for index in range(len(self.model.model) - 1))
        return stage_plan(request, teacher, self._rows(), self._frozen(request.method, request.head_only, body), body)

    def _frozen(self, method: MethodSettings, head_only: bool, body: tuple[str, ...]) -> tuple[str, ...]:
        frozen = body if method.freeze_shared or head_only else ()
        return frozen + self._towers() if method.freeze_towers else frozen

    def _towers(self) -> tuple[str, ...]:
        """Prefixes of everything in the head but its class rows."""
        rows = {name.rpartition(".")[0] for name in self._rows()}
        owners = {name.rpartition(".")[0] for name, _ in self.model.named_parameters()}
        return tuple(sorted(f"{name}." for name in owners - rows if name.startswith(self.head_prefix)))


def name_classes(model: DetectionModel, classes: Sequence[str]) -> None:
    """Write class names and their count into a network, its head apart."""
    model.names = dict(enumerate(classes))
    model.nc = len(classes)
    model.yaml = {**model.yaml, "nc": len(classes)}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
