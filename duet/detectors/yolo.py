"""YOLO11 (and every Ultralytics detector with the same Detect head) behind the detector contract."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel

from duet.config import MethodSettings
from duet.detectors.base import Description
from duet.detectors.parallel_head import ParallelDetect
from duet.detectors.ultralytics_detector import UltralyticsDetector, name_classes
from duet.detectors.ultralytics_layout import checked_layout
from duet.detectors.ultralytics_predict import MultiLabelPredictor
from duet.detectors.yolo_training import YoloStageTrainer
from duet.errors import InputError


class YoloDetector(UltralyticsDetector):
    """A YOLO with one Detect head, whose class rows grow, or with one such head per task.

    Args:
        model: Ultralytics detection model with a plain ``Detect`` head and distribution boxes.

    Raises:
        InputError: when the head is of another kind.
    """

    family = "yolo"
    heads = ("rows", "parallel")
    trainer = YoloStageTrainer
    predictor = DetectionPredictor
    multi_label_predictor = MultiLabelPredictor

    def __init__(self, model: DetectionModel) -> None:
        head = model.model[-1]
        if (
            type(head) not in (Detect, ParallelDetect)
            or getattr(head, "one2one_cv2", None) is not None
            or head.reg_max <= 1
        ):
            raise InputError(
                f"detector with head {type(head).__name__}: expected a plain Detect head with distribution boxes "
                "(YOLOv8, YOLO11, YOLO12); end-to-end heads (YOLOv10, YOLO26) are not supported"
            )
        super().__init__(model)

    @classmethod
    def from_description(cls, description: Description) -> YoloDetector:
        """Build the network of a description; its tensors are still random."""
        layout = dict(description.architecture)
        detector = cls(DetectionModel(checked_layout(layout["yaml"]), nc=layout["tower_classes"], verbose=False))
        first, *later = layout["heads"]
        detector = detector._with_rows(description.classes[:first], seed=0)
        position = first
        for count in later:
            detector = detector._with_head(description.classes[position : position + count], seed=0)
            position += count
        detector._image_size = layout.get("image_size")
        return detector

    def grown(self, new_classes: Sequence[str], seed: int, head: str, new_rows: str = "random") -> YoloDetector:
        """Append class rows, or a whole head whose towers start as those of the last one."""
        if head == "parallel":
            self._refuse_known(new_classes)
            return self._with_head(new_classes, seed)
        if isinstance(self.head, ParallelDetect):
            raise InputError("a detector with parallel heads cannot grow by rows; keep method.head: parallel")
        return super().grown(new_classes, seed, head, new_rows)

    def merged_head(self, previous: Mapping[str, Tensor], method: MethodSettings) -> dict[str, Tensor]:
        """By the method's policies; parallel heads of earlier tasks stay to the bit those of the previous model."""
        if not isinstance(self.head, ParallelDetect):
            return super().merged_head(previous, method)
        current = self.state()
        return {**{key: current[key] for key in self.split().task}, **self._old_heads(previous)}

    def describe(self) -> Description:
        """Architecture, tower width and classes."""
        layout = {key: value for key, value in self.model.yaml.items() if key != "nc"}
        layout["nc"] = self._tower_classes()
        return Description(
            self.family,
            self.classes,
            {
                "yaml": layout,
                "tower_classes": self._tower_classes(),
                "heads": [head.nc for head in self._heads()],
                "image_size": self.image_size,
            },
        )

    def _rows(self) -> tuple[str, ...]:
        if isinstance(self.head, ParallelDetect):
            return ()
        return tuple(
            f"{self.head_prefix}cv3.{level}.{len(branch) - 1}.{kind}"
            for level, branch in enumerate(self.head.cv3)
            for kind in ("weight", "bias")
        )

    def _resize_rows(self, head: nn.Module, count: int, keep: int, generator: torch.Generator) -> None:
        for branch, stride in zip(head.cv3, head.stride.tolist()):
            branch[-1] = _wider_row(branch[-1], count, keep, stride, generator)
        head.nc, head.no = count, count + 4 * head.reg_max

    def _frozen(self, method: MethodSettings, head_only: bool) -> tuple[str, ...]:
        frozen = super()._frozen(method, head_only)
        if isinstance(self.head, ParallelDetect):
            frozen += tuple(f"{self.head_prefix}heads.{index}." for index in range(len(self.head.heads) - 1))
        return frozen

    def _towers(self) -> tuple[str, ...]:
        return () if isinstance(self.head, ParallelDetect) else super()._towers()

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
        fresh = copy.deepcopy(self._heads()[-1])
        self._resize_rows(fresh, len(classes), 0, torch.Generator().manual_seed(seed))
        model = copy.deepcopy(self.model)
        old = list(model.model[-1].heads) if isinstance(self.head, ParallelDetect) else [model.model[-1]]
        model.model[-1] = ParallelDetect([*old, fresh])
        name_classes(model, (*self.classes, *classes))
        return self._wrapping(model)


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
