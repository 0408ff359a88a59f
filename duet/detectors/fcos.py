"""torchvision's FCOS behind the detector contract: a family from outside Ultralytics, trained by a plain loop."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, ResNet
from typing_extensions import Self

from duet.config import EvaluationSettings
from duet.detectors.base import BATCH, Description, Detections, Key
from duet.detectors.plain_data import Sample, letterbox, read_rgb, to_tensor
from duet.detectors.plain_training import PlainDetector
from duet.detectors.stage_plan import StagePlan
from duet.losses.query_distillation import QUERY_DISTILLATIONS

STRIDES = (8, 16, 32)
RARE = 0.01  # probability that a fresh class output starts from (FCOS, section 3.1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASS_ROWS = ("head.classification_head.cls_logits.weight", "head.classification_head.cls_logits.bias")


class FcosDetector(PlainDetector):
    """FCOS with a small ResNet: θ_s is the ResNet with its feature pyramid, θ_τ the head.

    Args:
        model: torchvision's FCOS with ``duet_layout`` (what :meth:`describe` gives) and ``duet_classes``.
    """

    family = "fcos"

    @classmethod
    def from_description(cls, description: Description) -> FcosDetector:
        """Build the network of a description; its tensors are still random."""
        layout = dict(description.architecture)
        model = _build(layout["blocks"], layout["channels"], layout["convolutions"], len(description.classes))
        model.duet_layout = {key: layout[key] for key in ("blocks", "channels", "convolutions")}
        model.duet_classes = description.classes
        detector = cls(model)
        detector._image_size = layout.get("image_size")
        return detector

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.model.duet_classes

    @property
    def head_prefix(self) -> str:
        """The head's attribute."""
        return "head."

    @property
    def body_prefixes(self) -> tuple[str, ...]:
        """ResNet and feature pyramid."""
        return ("backbone.",)

    def raw(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Class logits (B, A, C), sides (B, A, 4) in units of the anchor, and centre-ness (B, A, 1)."""
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return model.head(list(model.backbone((images - mean) / std).values()))

    def own_losses(
        self, images: Tensor, samples: list[Sample], outputs: Mapping[str, Tensor], first_class: int
    ) -> dict[str, Tensor]:
        """FCOS's three terms."""
        chosen = {**outputs, "cls_logits": outputs["cls_logits"][..., first_class:]}
        targets = [{"boxes": sample.boxes_xyxy, "labels": sample.labels - first_class} for sample in samples]
        anchors, per_level = _anchors(images)
        return self.model.compute_loss(targets, chosen, [anchors] * len(images), per_level)

    def distill(
        self, images: Tensor, outputs: Mapping[str, Tensor], taught: Mapping[str, Tensor], plan: StagePlan
    ) -> Tensor:
        """Same anchors in student and teacher: output by output; centre-ness is left to the detector's own loss."""
        student = outputs["cls_logits"][..., : plan.old_classes]
        pairs = [self._boxes(images, values) for values in (outputs, taught)]
        return QUERY_DISTILLATIONS[plan.distillation.kind](student, pairs[0], taught["cls_logits"], pairs[1])

    def predict(
        self, images: Sequence[Path], image_size: int, settings: EvaluationSettings
    ) -> Iterator[tuple[Path, Detections]]:
        """As :meth:`predict_pictures`."""
        pictures = ((path, read_rgb(path)[..., ::-1]) for path in images)
        yield from self.predict_pictures(pictures, image_size, settings)

    @torch.no_grad()
    def predict_pictures(
        self,
        pictures: Iterable[tuple[Key, np.ndarray]],
        image_size: int,
        settings: EvaluationSettings,
        batch: int = BATCH,
        square: bool = False,
    ) -> Iterator[tuple[Key, Detections]]:
        """Square inputs in any case, torchvision's own thresholds and suppression, boxes in the original image."""
        model = copy.deepcopy(self.model).eval()
        model.score_thresh, model.nms_thresh = settings.confidence, settings.iou
        model.detections_per_img = settings.max_detections
        waiting = iter(pictures)
        while group := list(islice(waiting, batch)):
            inputs = torch.stack(list(_inputs((picture[..., ::-1] for _, picture in group), image_size)))
            for (key, picture), found in zip(group, self._detect(model, inputs)):
                yield key, self._detections(found, picture.shape[:2], image_size)

    @torch.no_grad()
    def estimate_batch_norm(self, images: Iterable[Path], image_size: int) -> None:
        """Re-estimate running means and variances as averages over the given images."""
        from merging.batch_norm import reestimate

        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        inputs = (read_rgb(path) for path in images)
        batches = ((picture.unsqueeze(0) - mean) / std for picture in _inputs(inputs, image_size))
        reestimate(self.model.backbone, batches)

    def describe(self) -> Description:
        """Architecture and classes."""
        return Description(self.family, self.classes, {**self.model.duet_layout, "image_size": self.image_size})

    def save_checkpoint(self, path: Path) -> None:
        """Tensors, class names and architecture; ``torch.load(path, weights_only=True)`` opens it."""
        description = self.describe()
        content = {
            "family": description.family,
            "classes": list(description.classes),
            "architecture": dict(description.architecture),
            "model": self.state(),
        }
        with path.open("wb") as stream:  # given a path, torch writes its name into the file
            torch.save(content, stream)

    def _rows(self) -> tuple[str, ...]:
        return CLASS_ROWS

    def _with_rows(self, classes: Sequence[str], seed: int, keep: int = 0) -> Self:
        model = copy.deepcopy(self.model)
        part = model.head.classification_head
        part.cls_logits = _wider(part.cls_logits, len(classes), keep, torch.Generator().manual_seed(seed))
        part.num_classes = len(classes)
        model.duet_classes = tuple(classes)
        return self._wrapping(model)

    def _boxes(self, images: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        """Centre and size of the predicted boxes as parts of the input, (B, A, 4)."""
        anchors, _ = _anchors(images)
        corners = self.model.box_coder.decode(outputs["bbox_regression"], anchors.expand(len(images), -1, -1))
        low, high = corners[..., :2], corners[..., 2:]
        return torch.cat([(low + high) / 2, high - low], -1) / images.shape[-1]

    def _detect(self, model: FCOS, inputs: Tensor) -> list[dict[str, Tensor]]:
        outputs = self.raw(model, inputs)
        anchors, per_level = _anchors(inputs)
        split = {name: list(values.split(per_level, dim=1)) for name, values in outputs.items()}
        shapes = [tuple(inputs.shape[-2:])] * len(inputs)
        return model.postprocess_detections(split, [list(anchors.split(per_level))] * len(inputs), shapes)

    def _detections(self, found: dict[str, Tensor], size_hw: tuple[int, int], image_size: int) -> Detections:
        height, width = size_hw
        scale = image_size / max(height, width)
        border = np.array([(image_size - round(width * scale)) // 2, (image_size - round(height * scale)) // 2] * 2)
        boxes = (found["boxes"].cpu().numpy() - border) / scale
        limits = np.array([width, height, width, height])
        return Detections(
            np.clip(boxes, 0, limits).astype(np.float32),
            found["scores"].cpu().numpy().astype(np.float32),
            tuple(self.classes[index] for index in found["labels"].tolist()),
        )


def _build(blocks: Sequence[int], channels: int, convolutions: int, classes: int) -> FCOS:
    resnet = ResNet(BasicBlock, list(blocks))
    backbone = BackboneWithFPN(resnet, {"layer2": "0", "layer3": "1"}, [128, 256], channels)
    generator = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
    head = FCOSHead(channels, 1, classes, convolutions)
    return FCOS(backbone, classes, anchor_generator=generator, head=head)


def _anchors(images: Tensor) -> tuple[Tensor, list[int]]:
    """(A, 4) anchors of a square input, as torchvision lays them, and their number per level."""
    generator = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
    maps = [images.new_empty(1, 1, *(-(-side // stride) for side in images.shape[-2:])) for stride in STRIDES]
    anchors = generator(ImageList(images[:1], [tuple(images.shape[-2:])]), maps)[0]
    return anchors, [one.shape[-2] * one.shape[-1] for one in maps]


def _wider(layer: nn.Conv2d, count: int, keep: int, generator: torch.Generator) -> nn.Conv2d:
    """The class convolution with ``count`` outputs; new ones start as rare as the old ones are on average."""
    wider = nn.Conv2d(layer.in_channels, count, layer.kernel_size, padding=layer.padding)
    with torch.no_grad():
        wider.weight.normal_(std=0.01, generator=generator)
        wider.bias.fill_(float(layer.bias[:keep].mean() if keep else torch.logit(torch.tensor(RARE))))
        wider.weight[:keep] = layer.weight[:keep]
        wider.bias[:keep] = layer.bias[:keep]
    return wider.to(layer.weight)


def _inputs(pictures: Iterable[np.ndarray], image_size: int) -> Iterator[Tensor]:
    change = letterbox(image_size)
    for picture in pictures:
        yield to_tensor(change(image=picture)["image"])
