"""Rebuild a trainable YOLO from an ONNX export whose convolutions and BatchNorms are fused.

The export's tensors carry Ultralytics' own names. Taking each BatchNorm as the identity is right in eval mode and
destroys the network in training mode, where batch statistics replace it. So a few natural images are run through and
each BatchNorm is given its input's own statistics, with weight and bias chosen such that the eval-mode function stays
what it was.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

CALIBRATION_CROPS = 48
CALIBRATION_SIZE = 320


def rebuild_from_onnx(path: Path, architecture: str) -> DetectionModel:
    """Build the named architecture with the export's weights and calibrated BatchNorms.

    Args:
        path: ONNX file of a YOLO detection model exported by Ultralytics with fused BatchNorm.
        architecture: Ultralytics YAML name such as ``yolo11n.yaml``.

    Returns:
        The model in eval mode, with the export's class names.

    Raises:
        ValueError: when a tensor that the architecture needs is not in the export.
    """
    export = onnx.load(str(path))
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in export.graph.initializer}
    metadata = {item.key: item.value for item in export.metadata_props}
    names = _class_names(metadata.get("names", ""))
    model = DetectionModel(architecture, nc=len(names), verbose=False)
    model.names = dict(enumerate(names))
    model.load_state_dict(_unfused(model, tensors, path))
    _calibrate(model.eval(), _natural_crops())
    return model


def _class_names(text: str) -> list[str]:
    import ast

    names = ast.literal_eval(text) if text else {}
    if not isinstance(names, dict) or not names:
        raise ValueError("the ONNX export names no classes")
    return [str(names[index]) for index in range(len(names))]


def _unfused(model: DetectionModel, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    state = model.state_dict()
    for key, value in state.items():
        owner = key.rpartition(".")[0]
        if owner in norms:
            continue
        if key not in tensors or tensors[key].shape != value.shape:
            raise ValueError(f"{path}: the export has no tensor '{key}' of shape {tuple(value.shape)}")
        state[key] = tensors[key].to(value.dtype)
    for name, norm in norms.items():
        bias = name.rpartition(".")[0] + ".conv.bias"
        if bias not in tensors:
            raise ValueError(f"{path}: the export has no tensor '{bias}'")
        state[f"{name}.running_mean"] = torch.zeros_like(state[f"{name}.running_mean"])
        state[f"{name}.running_var"] = torch.ones_like(state[f"{name}.running_var"])
        state[f"{name}.weight"] = torch.full_like(state[f"{name}.weight"], float(np.sqrt(1.0 + norm.eps)))
        state[f"{name}.bias"] = tensors[bias].to(state[f"{name}.bias"].dtype)
    return state


@torch.no_grad()
def _calibrate(model: DetectionModel, images: Tensor) -> None:
    """Give every BatchNorm the statistics of its input over ``images`` (N, 3, H, W), the function unchanged."""
    found: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].double(), dim=(0, 2, 3), unbiased=False)
        found[module] = (mean.float(), variance.float())

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(record) for norm in norms]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    for norm in norms:
        mean, variance = found[norm]
        norm.bias.add_(mean)
        norm.weight.copy_(torch.sqrt(variance + norm.eps))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _natural_crops() -> Tensor:
    """Random crops of scikit-learn's two photographs, (N, 3, H, W), 0 to 1; always the same ones."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    crops = []
    photographs = load_sample_images().images
    for index in range(CALIBRATION_CROPS):
        photograph = photographs[index % len(photographs)]  # (H, W, 3) RGB
        side = int(generator.integers(160, min(photograph.shape[:2]) + 1))
        top = int(generator.integers(0, photograph.shape[0] - side + 1))
        left = int(generator.integers(0, photograph.shape[1] - side + 1))
        crop = cv2.resize(photograph[top : top + side, left : left + side], (CALIBRATION_SIZE, CALIBRATION_SIZE))
        crops.append(np.ascontiguousarray(crop.transpose(2, 0, 1)))
    return torch.from_numpy(np.stack(crops)).float() / 255
