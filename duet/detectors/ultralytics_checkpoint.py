"""Open Ultralytics checkpoints and architectures without running code from them."""

from __future__ import annotations

from pathlib import Path

from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, torch_safe_load, yaml_model_load

from duet.detectors.rtdetr import RtdetrDetector
from duet.detectors.ultralytics_detector import UltralyticsDetector
from duet.detectors.yolo import YoloDetector
from duet.errors import InputError


def open_checkpoint(path: Path) -> UltralyticsDetector:
    """Open a plain Ultralytics checkpoint.

    Raises:
        InputError: when the file is damaged, holds anything but known torch and Ultralytics classes, or a network of
            another kind.
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
    detector = _wrap(model)
    detector._image_size = _trained_size(model)
    return detector


def build_architecture(name: str) -> UltralyticsDetector:
    """A network with random weights.

    Args:
        name: a YAML file, or the name of one of Ultralytics', such as ``rtdetr-l.yaml``.

    Raises:
        InputError: when there is no such file or it describes no detector.
    """
    try:
        layout = yaml_model_load(name)
        is_rtdetr = layout["head"][-1][2] == RTDETRDecoder.__name__
        model = (RTDETRDetectionModel if is_rtdetr else DetectionModel)(layout, verbose=False)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such architecture file") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name}: does not describe a detector ({error})") from error
    return _wrap(model)


def _wrap(model: DetectionModel) -> UltralyticsDetector:
    return (RtdetrDetector if isinstance(model.model[-1], RTDETRDecoder) else YoloDetector)(model)


def _trained_size(model: DetectionModel) -> int | None:
    """The side of the training input, where the checkpoint tells."""
    settings = getattr(model, "args", None)
    size = settings.get("imgsz") if isinstance(settings, dict) else getattr(settings, "imgsz", None)
    return size if isinstance(size, int) else None
