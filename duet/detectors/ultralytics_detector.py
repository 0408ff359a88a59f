"""What all detectors of Ultralytics share behind the detector contract."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self
from ultralytics.engine.predictor import BasePredictor
from ultralytics.nn.tasks import DetectionModel

from duet import processes
from duet.config import EvaluationSettings
from duet.detectors.base import BATCH, Detections, ExportFormat, Key, StageOutcome, StageRequest
from duet.detectors.module_detector import ModuleDetector
from duet.detectors.ultralytics_export import compute_in_float32, export_model, own_packages_only
from duet.detectors.ultralytics_predict import letterboxed, predict_images, predict_pictures, set_up_predictor
from duet.detectors.ultralytics_stage import GradientJob, StageJob, trainer_settings
from duet.detectors.ultralytics_training import StageTraining


class UltralyticsDetector(ModuleDetector):
    """A detection network of Ultralytics; the head is its last module.

    Args:
        model: Ultralytics detection model.
    """

    shares_training = True
    family: ClassVar[str]
    trainer: ClassVar[type[StageTraining]]
    predictor: ClassVar[type[BasePredictor]]
    multi_label_predictor: ClassVar[type[BasePredictor] | None] = None  # of detectors whose boxes can have several
    stretched: ClassVar[bool] = False  # whether inputs are stretched to a square instead of letterboxed

    def __init__(self, model: DetectionModel) -> None:
        super().__init__(model)
        if "yaml_file" in model.yaml:  # a name is of use to others, a place on this machine is not
            model.yaml = {**model.yaml, "yaml_file": Path(str(model.yaml["yaml_file"])).name}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return tuple(self.model.names[index] for index in range(len(self.model.names)))

    @property
    def head(self) -> nn.Module:
        """The last module."""
        return self.model.model[-1]

    @property
    def head_prefix(self) -> str:
        """What the names of the head's tensors start with."""
        return f"model.{len(self.model.model) - 1}."

    @property
    def body_prefixes(self) -> tuple[str, ...]:
        """Every module but the last."""
        return tuple(f"model.{index}." for index in range(len(self.model.model) - 1))

    def train_stage(self, request: StageRequest) -> StageOutcome:
        """Train through the Ultralytics trainer and take over its EMA weights."""
        processes.refuse_other_count(request.train)
        plan, settings = self._plan(request), trainer_settings(request)
        stage = StageJob(self.trainer, self.model, plan, settings, processes.threads_of(request.train)).run()
        self.model.load_state_dict(stage.network.float().state_dict())
        self.model.requires_grad_(True)
        self._image_size = request.train.image_size
        return StageOutcome(tuple(stage.losses), stage.seconds)

    def squared_gradients(self, request: StageRequest) -> dict[str, Tensor]:
        """Through the Ultralytics trainer's data and loss."""
        processes.refuse_other_count(request.train)
        threads = processes.threads_of(request.train)
        return GradientJob(self.trainer, self.clone().model, trainer_settings(request), threads).run()

    def predict(
        self, images: Sequence[Path], image_size: int, settings: EvaluationSettings
    ) -> Iterator[tuple[Path, Detections]]:
        """Ultralytics' own predictor on square inputs."""
        predictor = (self.multi_label_predictor if settings.multi_label else None) or self.predictor
        yield from predict_images(predictor, self.model, self.classes, images, image_size, settings)

    def predict_pictures(
        self,
        pictures: Iterable[tuple[Key, np.ndarray]],
        image_size: int,
        settings: EvaluationSettings,
        batch: int = BATCH,
        square: bool = False,
    ) -> Iterator[tuple[Key, Detections]]:
        """Ultralytics' own predictor as ``YOLO("detector.pt").predict`` sets it up: padded to the stride only."""
        predictor = set_up_predictor(self.predictor, self.model, image_size, settings, rect=not square)
        yield from predict_pictures(predictor, self.classes, pictures, batch)

    def export(self, form: ExportFormat, folder: Path, image_size: int, dynamic: bool) -> Path:
        """Through Ultralytics' exporter."""
        return export_model(self.model, form, folder, image_size, dynamic)

    def predict_exported(
        self,
        exported: Path,
        pictures: Iterable[tuple[Key, np.ndarray]],
        image_size: int,
        settings: EvaluationSettings,
        square: bool = False,
    ) -> Iterator[tuple[Key, Detections]]:
        """Ultralytics' own predictor around the format's runtime, which computes in float32."""
        with own_packages_only():
            predictor = set_up_predictor(self.predictor, exported, image_size, settings, rect=not square)
        compute_in_float32(predictor, exported)
        names = tuple(predictor.model.names[index] for index in range(len(predictor.model.names)))
        yield from predict_pictures(predictor, names, pictures, batch=1)

    @torch.no_grad()
    def estimate_batch_norm(self, images: Iterable[Path], image_size: int) -> None:
        """Re-estimate running means and variances as averages over the given images."""
        from merging.batch_norm import reestimate

        reestimate(self.model, letterboxed(images, image_size, self.stretched))

    def save_checkpoint(self, path: Path) -> None:
        """A plain Ultralytics checkpoint in float32; ``YOLO(path)`` opens it without this package."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        model.criterion = None
        model.model[-1].__dict__.pop("max_det", None)  # a prediction leaves it there
        model.args = {"imgsz": self.image_size or 640, "task": "detect"}
        model.task = "detect"
        content = {
            "model": model,
            "ema": None,
            "epoch": -1,
            "train_args": {"imgsz": self.image_size or 640, "task": "detect"},
        }
        with path.open("wb") as stream:  # given a path, torch writes its name into the file
            torch.save(content, stream)

    @abstractmethod
    def _resize_rows(self, head: nn.Module, count: int, keep: int, generator: torch.Generator) -> None:
        """Give a head ``count`` classes, of which the first ``keep`` are the old ones, in place."""

    def _with_rows(self, classes: Sequence[str], seed: int, keep: int = 0) -> Self:
        model = copy.deepcopy(self.model)
        self._resize_rows(model.model[-1], len(classes), keep, torch.Generator().manual_seed(seed))
        name_classes(model, classes)
        return self._wrapping(model)


def name_classes(model: DetectionModel, classes: Sequence[str]) -> None:
    """Write class names and their count into a network, its head apart."""
    model.names = dict(enumerate(classes))
    model.nc = len(classes)
    model.yaml = {**model.yaml, "nc": len(classes)}
