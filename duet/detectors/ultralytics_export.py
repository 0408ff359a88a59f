"""Export through Ultralytics' exporter, kept from installing or downloading anything."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ultralytics.engine.exporter import Exporter
from ultralytics.engine.predictor import BasePredictor
from ultralytics.nn.backends.openvino import OpenVINOBackend
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER, checks

from duet.detectors.base import ExportFormat
from duet.errors import InputError

PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx",),
    "openvino": ("openvino",),
    "torchscript": (),
    "engine": ("onnx", "tensorrt"),
}


def export_model(model: DetectionModel, form: ExportFormat, folder: Path, image_size: int, dynamic: bool) -> Path:
    """Write a network in an exchange format; class names, input size and stride stand in its metadata.

    Args:
        model: the network; not changed.
        form: the format.
        folder: where the exporter may write; the result lies in it.
        image_size: side of the input in pixels.
        dynamic: leave batch, height and width open. TorchScript is traced for one size.

    Returns:
        ``folder/detector`` with the format's own ending.

    Raises:
        InputError: when a package or a GPU is missing, or the exporter cannot write this network.
    """
    missing = [name for name in PACKAGES[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--format {form}: the package '{missing[0]}' is not installed; nothing was installed for you")
    if form == "engine" and not torch.cuda.is_available():
        raise InputError("--format engine: TensorRT builds its engine on the GPU that will run it, and there is none")
    network = copy.deepcopy(model).eval()
    network.pt_path = str(folder / "detector.pt")  # the exporter takes folder and name from it; there is no such file
    network.task, network.args = "detect", {"imgsz": image_size, "task": "detect", "data": ""}
    settings = {
        "format": form,
        "imgsz": image_size,
        "dynamic": dynamic and form != "torchscript",
        "batch": 1,
        "mode": "export",
    }
    if "onnx" in PACKAGES[form]:
        settings["simplify"] = False  # it takes one more package, and onnxruntime does the same when it loads a graph
    with own_packages_only():
        try:
            written = Exporter(overrides=settings)(model=network)
        except Exception as error:  # vendors' exporters raise nearly anything
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"--format {form}: Ultralytics cannot export this detector ({lines[0]})") from error
    return Path(written)


def compute_in_float32(predictor: BasePredictor, exported: Path) -> None:
    """Keep OpenVINO from bfloat16, which it prefers where the processor has it; it moves scores by a hundredth."""
    backend = predictor.model.backend
    if isinstance(backend, OpenVINOBackend):
        graph = backend.ov.Core().read_model(next(exported.glob("*.xml")))
        backend.ov_compiled_model = backend.ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@contextmanager
def own_packages_only() -> Iterator[None]:
    """Ultralytics installs what it misses; here it may not, and keeps its messages to itself."""
    allowed, level = checks.AUTOINSTALL, LOGGER.level
    checks.AUTOINSTALL = False
    LOGGER.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about the tracing that Ultralytics uses
            yield
    finally:
        checks.AUTOINSTALL = allowed
        LOGGER.setLevel(level)
