"""Open Ultralytics checkpoints and architectures without running code from them."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, _SafeLoad, torch_safe_load, yaml_model_load

from duet.detectors.archives import archive_is_whole, foreign_name
from duet.detectors.parallel_head import ParallelDetect
from duet.detectors.rtdetr import RtdetrDetector
from duet.detectors.ultralytics_detector import UltralyticsDetector
from duet.detectors.ultralytics_export import own_packages_only
from duet.detectors.ultralytics_layout import checked_layout
from duet.detectors.yolo import YoloDetector
from duet.errors import InputError


def open_checkpoint(path: Path, trust: bool = False) -> UltralyticsDetector:
    """Open a plain Ultralytics checkpoint.

    Args:
        path: the file.
        trust: run whatever code the file brings with it; otherwise only classes of torch and Ultralytics, and our
            parallel head, are put together, and nothing runs.

    Raises:
        InputError: when the file is damaged, holds anything but those classes, or a network of another kind.
    """
    if not _SafeLoad.SUPPORTED and not trust:
        raise InputError(f"{path}: this torch cannot open a checkpoint without running it; expected torch 2.6 or newer")
    if zipfile.is_zipfile(path) and not archive_is_whole(path):
        raise InputError(f"{path}: damaged, a part of it has another checksum than its archive says")
    try:
        with own_packages_only(), torch.serialization.safe_globals([ParallelDetect]):
            checkpoint, _ = torch_safe_load(path, safe_only=not trust)
    except Exception as error:  # a file that is no checkpoint makes the loader raise nearly anything
        raise InputError(f"{path}: refused as a checkpoint; {_why(path, error)}") from error
    model = (checkpoint.get("ema") or checkpoint.get("model")) if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(model, DetectionModel):
        raise InputError(f"{path}: expected a detection model, found {type(model).__name__}")
    try:
        detector = _wrap(model)
        detector._image_size = _trained_size(model)
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"{path}: damaged, its detection model lacks a part ({error})") from error
    return detector


def build_architecture(name: str) -> UltralyticsDetector:
    """A network with random weights.

    Args:
        name: a YAML file, or the name of one of Ultralytics', such as ``rtdetr-l.yaml``.

    Raises:
        InputError: when there is no such file or it describes no detector.
    """
    if "://" in name:
        raise InputError(f"{name}: expected an architecture file; none is fetched")
    try:
        layout = checked_layout(yaml_model_load(name))
        is_rtdetr = layout["head"][-1][2] == RTDETRDecoder.__name__
        model = (RTDETRDetectionModel if is_rtdetr else DetectionModel)(layout, verbose=False)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such architecture file") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name}: does not describe a detector ({error})") from error
    return _wrap(model)


def _why(path: Path, error: BaseException) -> str:
    """What a checkpoint holds that is not opened, by name, or that it is damaged."""
    chain, said = error, ""
    while chain is not None:
        said, chain = f"{said} {chain}", chain.__cause__ or chain.__context__
    found = re.search(r"(?:GLOBAL|global|class) ([\w.]+\.[\w.]+) was not", said)
    name = found[1] if found else foreign_name(path)
    if name is None:
        return "it is damaged, or no file of torch"
    return (
        f"it holds '{name}', which is none of the classes of torch and Ultralytics and could run code; "
        "--trust opens it all the same, if you know where it comes from"
    )


def _wrap(model: DetectionModel) -> UltralyticsDetector:
    return (RtdetrDetector if isinstance(model.model[-1], RTDETRDecoder) else YoloDetector)(model)


def _trained_size(model: DetectionModel) -> int | None:
    """The side of the training input, where the checkpoint tells."""
    settings = getattr(model, "args", None)
    size = settings.get("imgsz") if isinstance(settings, dict) else getattr(settings, "imgsz", None)
    return size if isinstance(size, int) else None
