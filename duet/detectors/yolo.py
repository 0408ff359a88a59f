"""YOLO11 (and every Ultralytics detector with the same Detect head) behind the detector contract."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, torch_safe_load

from duet.config import EvaluationSettings, MethodSettings
from duet.detectors.base import Description, Detections, Detector, StageOutcome, StageRequest, StateSplit
from duet.detectors.parallel_head import ParallelDetect
from duet.detectors.ultralytics_losses import StagePlan
from duet.detectors.ultralytics_predict import letterboxed, predict_images
from duet.detectors.ultralytics_stage import run_stage
from duet.errors import InputError


class YoloDetector(Detector):
    """A YOLO with one Detect head whose class rows grow (head policy ``rows``).

    θ_s is everything below the last module, θ_τ the Detect head: DuET, section 4.1.

    Args:
        model: Ultralytics detection model with a plain ``Detect`` head and distribution boxes.
    """

    def __init__(self, model: DetectionModel) -> None:
        head = model.model[-1]
        if (
            type(head) not in (Detect, ParallelDetect)
            or getattr(head, "one2one_cv2", None) is not None
            or head.reg_max <= 1
        ):
            raise InputError(
                f"detector with head {type(head).__name__}: expected a plain Detect head with distribution boxes "
                "(YOLOv8, YOLO11, YOLO12); end-to-end heads are not supported"
            )
        self.model = model.float().requires_grad_(True)  # checkpoints are stored without

    @classmethod
    def from_checkpoint(cls, path: Path) -> YoloDetector:
        """Open a plain Ultralytics checkpoint without running code from it.

        Raises:
            InputError: when the file is damaged, or holds anything but known torch and Ultralytics classes.
        """
        try:
            checkpoint, _ = torch_safe_load(path, safe_only=True)
        except Exception as error:  # a file that is no checkpoint makes the loader raise nearly anything
            raise InputError(
                f"{path}: refused as a checkpoint; it is damaged, or holds objects other than those of torch and "
                "Ultralytics, which could run code"
            ) from error
        model = checkpoint.get("ema") or checkpoint.get("model")
        if not isinstance(model, DetectionModel):
            raise InputError(f"{path}: expected a detection model, found {type(model).__name__}")
        return cls(model)

    @classmethod
    def from_description(cls, description: Description) -> YoloDetector:
        """Build the network of a description; its tensors are still random."""
        layout = dict(description.architecture)
        model = DetectionModel(layout["yaml"], nc=layout["tower_classes"], verbose=False)
        first, *later = layout["heads"]
        detector = cls(model)._with_rows(description.classes[:first], seed=0)
        position = first
        for count in later:
            detector = detector._with_head(description.classes[position : position + count], seed=0)
            position += count
        detector._image_size = layout.get("image_size")
        return detector

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return tuple(self.model.names[index] for index in range(len(self.model.names)))

    @property
    def image_size(self) -> int | None:
        """Side of the training input in pixels."""
        return getattr(self, "_image_size", None)

    @property
    def head(self) -> Detect:
        """The Detect module."""
        return self.model.model[-1]

    @property
    def head_prefix(self) -> str:
        """What the names of the head's tensors start with."""
        return f"model.{len(self.model.model) - 1}."

    @property
    def split(self) -> StateSplit:
        """Backbone and neck are shared, the Detect head is task-specific."""
        keys = tuple(self.model.state_dict())
        task = tuple(key for key in keys if key.startswith(self.head_prefix))
        shared = tuple(key for key in keys if not key.startswith(self.head_prefix))
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

    def clone(self) -> YoloDetector:
        """An independent copy."""
        return type(self)._wrapping(copy.deepcopy(self.model), self.image_size)

    def with_classes(self, classes: Sequence[str], seed: int) -> YoloDetector:
        """Fresh rows for these classes on the towers as they are."""
        return self._with_rows(classes, seed)

    def grown(self, new_classes: Sequence[str], seed: int, head: str) -> YoloDetector:
        """Append class rows, or a whole head whose towers start as those of the last one."""
        known = [name for name in new_classes if name in self.classes]
        if known:
            raise ValueError(f"the detector already has class '{known[0]}'")
        if head == "parallel":
            return self._with_head(new_classes, seed)
        if isinstance(self.head, ParallelDetect):
            raise InputError("a detector with parallel heads cannot grow by rows; keep method.head: parallel")
        return self._with_rows((*self.classes, *new_classes), seed, keep=len(self.classes))

    def merged_head(self, previous: Mapping[str, Tensor], method: MethodSettings) -> dict[str, Tensor]:
        """Old class rows and towers by the method's policies, new class rows from training."""
        current = self.state()
        if isinstance(self.head, ParallelDetect):
            return {**{key: current[key] for key in self.split.task}, **self._old_heads(previous)}
        rows = self._row_keys()
        merged: dict[str, Tensor] = {}
        for key in self.split.task:
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
        plan = self._plan(request)
        threads = request.train.threads or os.cpu_count() or 1
        averaged, losses, seconds = run_stage(self.model, plan, _overrides(request), threads)
        self.model.load_state_dict(averaged.float().state_dict())
        self.model.requires_grad_(True)
        self._image_size = request.train.image_size
        return StageOutcome(tuple(losses), seconds)

    def predict(
        self, images: Sequence[Path], image_size: int, settings: EvaluationSettings
    ) -> Iterator[tuple[Path, Detections]]:
        """Ultralytics' own predictor, so that the boxes are those that a deployed checkpoint gives."""
        yield from predict_images(self.model, self.classes, images, image_size, settings)

    @torch.no_grad()
    def estimate_batch_norm(self, images: Iterable[Path], image_size: int) -> None:
        """Re-estimate running means and variances as averages over the given images."""
        from merging.batch_norm import reestimate

        reestimate(self.model, letterboxed(images, image_size))

    def describe(self) -> Description:
        """Architecture, tower width and classes."""
        layout = {key: value for key, value in self.model.yaml.items() if key != "nc"}
        layout["nc"] = self._tower_classes()
        return Description(
            "yolo",
            self.classes,
            {
                "yaml": layout,
                "tower_classes": self._tower_classes(),
                "heads": [head.nc for head in self._heads()],
                "image_size": self.image_size,
            },
        )

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

    @classmethod
    def _wrapping(cls, model: DetectionModel, image_size: int | None) -> YoloDetector:
        detector = cls(model)
        detector._image_size = image_size
        return detector

    def _row_keys(self) -> frozenset[str]:
        return frozenset(
            f"{self.head_prefix}cv3.{level}.{len(branch) - 1}.{kind}"
            for level, branch in enumerate(self.head.cv3)
            for kind in ("weight", "bias")
        )

    def _tower_classes(self) -> int:
        """The class count that gives the class towers the width they have (Detect: max(ch, min(nc, 100)))."""
        return min(self._heads()[0].cv3[0][-1].in_channels, 100)

    def _heads(self) -> list[Detect]:
        return list(self.head.heads) if isinstance(self.head, ParallelDetect) else [self.head]

    def _old_heads(self, previous: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The earlier heads' tensors, to the bit those of the previous model."""
        prefix = self.head_prefix
        names = {key: f"{prefix}heads.0.{key.removeprefix(prefix)}" for key in previous if key.startswith(prefix)}
        if any(key.startswith(f"{prefix}heads.") for key in previous):
            names = {key: key for key in names}
        return {name: previous[key].clone() for key, name in names.items()}

    def _with_head(self, classes: Sequence[str], seed: int) -> YoloDetector:
        last = YoloDetector._wrapping(copy.deepcopy(self.model), self.image_size)
        last.model.model[-1] = copy.deepcopy(self._heads()[-1])
        fresh = last._with_rows(classes, seed).head
        model = copy.deepcopy(self.model)
        old = list(model.model[-1].heads) if isinstance(self.head, ParallelDetect) else [model.model[-1]]
        model.model[-1] = ParallelDetect([*old, fresh])
        names = (*self.classes, *classes)
        model.names, model.nc, model.yaml = dict(enumerate(names)), len(names), {**model.yaml, "nc": len(names)}
        return type(self)._wrapping(model, self.image_size)

    def _with_rows(self, classes: Sequence[str], seed: int, keep: int = 0) -> YoloDetector:
        model = copy.deepcopy(self.model)
        head = model.model[-1]
        generator = torch.Generator().manual_seed(seed)
        for branch, stride in zip(head.cv3, head.stride.tolist()):
            branch[-1] = _wider_row(branch[-1], len(classes), keep, stride, generator)
        head.nc, head.no = len(classes), len(classes) + 4 * head.reg_max
        model.names = dict(enumerate(classes))
        model.nc = len(classes)
        model.yaml = {**model.yaml, "nc": len(classes)}
        return type(self)._wrapping(model, self.image_size)

    def _plan(self, request: StageRequest) -> StagePlan:
        method, teacher = request.method, request.teacher
        if teacher is None:
            return StagePlan(seed=request.seed, progress=request.progress)
        frozen = self._frozen_prefixes(method, request.head_only)
        return StagePlan(
            teacher=copy.deepcopy(teacher.model) if method.distillation else None,
            old_classes=len(teacher.classes),
            distillation=method.distillation,
            directional=method.directional_consistency if request.directional else None,
            previous=request.directional.previous if request.directional else {},
            direction=request.directional.direction if request.directional else {},
            negatives=method.negatives,
            hold_old_rows=method.head == "rows" and method.old_rows == "restore" and method.negatives == "new",
            frozen=frozen,
            freeze_batch_norm=method.batch_norm == "freeze" or request.head_only,
            shared_prefixes=tuple(f"model.{index}." for index in range(len(self.model.model) - 1)),
            shared_lr_factor=method.shared_lr_factor,
            past_domains=request.past_domains,
            own_domain=request.own_domain,
            replay_share=method.replay.share if method.replay else 0.0,
            seed=request.seed,
            progress=request.progress,
        )

    def _frozen_prefixes(self, method: MethodSettings, head_only: bool) -> tuple[str, ...]:
        prefixes: list[str] = []
        if isinstance(self.head, ParallelDetect):
            prefixes += [f"{self.head_prefix}heads.{index}." for index in range(len(self.head.heads) - 1)]
        if method.freeze_shared or head_only:
            prefixes += [f"model.{index}." for index in range(len(self.model.model) - 1)]
        if method.freeze_towers and not isinstance(self.head, ParallelDetect):
            prefixes.append(f"{self.head_prefix}cv2.")
            prefixes += [
                f"{self.head_prefix}cv3.{level}.{part}."
                for level, branch in enumerate(self.head.cv3)
                for part in range(len(branch) - 1)
            ]
        return tuple(prefixes)


def _wider_row(row: nn.Conv2d, count: int, keep: int, stride: float, generator: torch.Generator) -> nn.Conv2d:
    """The last class convolution with ``count`` outputs, of which the first ``keep`` are the old ones."""
    wider = nn.Conv2d(row.in_channels, count, 1)
    bound = 1.0 / row.in_channels**0.5
    with torch.no_grad():
        wider.weight.uniform_(-bound, bound, generator=generator)
        # Where trained rows exist, new ones start as rare as they are on average; otherwise as in Detect.bias_init,
        # about five objects among `count` classes in a 640-pixel image.
        start = float(row.bias[:keep].mean()) if keep else float(np.log(5 / count / (640 / stride) ** 2))
        wider.bias.fill_(start)
        wider.weight[:keep] = row.weight[:keep]
        wider.bias[:keep] = row.bias[:keep]
    return wider.to(row.weight)


def _overrides(request: StageRequest) -> dict:
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
