"""RT-DETR of any size behind the detector contract."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from ultralytics.models.rtdetr.predict import RTDETRPredictor
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.tasks import RTDETRDetectionModel

from duet.detectors.base import Description
from duet.detectors.rtdetr_training import RtdetrStageTrainer
from duet.detectors.ultralytics_detector import UltralyticsDetector
from duet.detectors.ultralytics_layout import checked_layout
from duet.errors import InputError

RARE = 0.01  # probability that a fresh class output starts from, as in RTDETRDecoder


class RtdetrDetector(UltralyticsDetector):
    """RT-DETR: θ_s is backbone and hybrid encoder, θ_τ the decoder with its class rows.

    Class rows are those of the encoder's score head, of every decoder layer's score head, and of the embedding that
    denoising queries start from. ``method.towers: shared`` counts the rest of the decoder to θ_s.

    Args:
        model: Ultralytics RT-DETR.
    """

    family = "rtdetr"
    trainer = RtdetrStageTrainer
    predictor = RTDETRPredictor
    stretched = True

    def __init__(self, model: RTDETRDetectionModel) -> None:
        if type(model.model[-1]) is not RTDETRDecoder:
            raise InputError(f"detector with head {type(model.model[-1]).__name__}: expected an RTDETRDecoder")
        super().__init__(model)

    @classmethod
    def from_description(cls, description: Description) -> RtdetrDetector:
        """Build the network of a description; its tensors are still random."""
        layout = dict(description.architecture)
        detector = cls(RTDETRDetectionModel(checked_layout(layout["yaml"]), nc=len(description.classes), verbose=False))
        detector.model.names = dict(enumerate(description.classes))
        detector._image_size = layout.get("image_size")
        return detector

    def describe(self) -> Description:
        """Architecture and classes."""
        layout = {**copy.deepcopy(self.model.yaml), "nc": len(self.classes)}
        return Description(self.family, self.classes, {"yaml": layout, "image_size": self.image_size})

    def _rows(self) -> tuple[str, ...]:
        layers = ["enc_score_head", *(f"dec_score_head.{index}" for index in range(len(self.head.dec_score_head)))]
        names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
        return tuple(f"{self.head_prefix}{name}" for name in (*names, "denoising_class_embed.weight"))

    def _score_rows(self) -> tuple[str, ...]:
        """Those of the decoder; query selection has a start of its own, and denoising embeddings are no scores."""
        return tuple(name for name in self._rows() if name.startswith(f"{self.head_prefix}dec_score_head."))

    def _resize_rows(self, head: nn.Module, count: int, keep: int, generator: torch.Generator) -> None:
        head.enc_score_head = _wider_selection(head.enc_score_head, count, keep, generator)
        for index, layer in enumerate(head.dec_score_head):
            head.dec_score_head[index] = _wider_scores(layer, count, keep, generator)
        head.denoising_class_embed = _wider_embedding(head.denoising_class_embed, count, keep, generator)
        head.nc = count


def _wider_scores(layer: nn.Linear, count: int, keep: int, generator: torch.Generator) -> nn.Linear:
    """Scores with ``count`` outputs; where trained rows exist, new ones start as rare as they are on average."""
    wider = nn.Linear(layer.in_features, count)
    bound = 1.0 / layer.in_features**0.5
    start = layer.bias[:keep].mean() if keep else torch.logit(torch.tensor(RARE))
    with torch.no_grad():
        wider.weight.uniform_(-bound, bound, generator=generator)
        wider.bias.fill_(float(start))
        _keep_rows(wider.weight, layer.weight, keep)
        _keep_rows(wider.bias, layer.bias, keep)
    return wider.to(layer.weight)


def _wider_selection(layer: nn.Linear, count: int, keep: int, generator: torch.Generator) -> nn.Linear:
    """The scores that queries are selected by.

    Queries are the places with the largest score over all classes. New rows are the mean of the old ones, less one:
    never the largest, so that a grown head selects the queries that it selected before.
    """
    wider = _wider_scores(layer, count, keep, generator)
    if keep:
        with torch.no_grad():
            wider.weight[keep:] = layer.weight[:keep].mean(0)
            wider.bias[keep:] = layer.bias[:keep].mean() - 1.0
    return wider


def _wider_embedding(layer: nn.Embedding, count: int, keep: int, generator: torch.Generator) -> nn.Embedding:
    wider = nn.Embedding(count, layer.embedding_dim)
    with torch.no_grad():
        wider.weight.normal_(generator=generator)
        _keep_rows(wider.weight, layer.weight, keep)
    return wider.to(layer.weight)


def _keep_rows(wider: Tensor, rows: Tensor, keep: int) -> None:
    wider[:keep] = rows[:keep]
