"""Image classifiers of torchvision: the network by name, checkpoints as state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from merging.checks import known, nearest
from merging.fusion.config import FusionSettings, TaskSettings
from merging.fusion.data import task_classes, task_samples
from merging.fusion.problem import FusionProblem, FusionTask, Inside, Origin
from merging.opening import open_model
from merging.result import State

HEADS = ("fc", "classifier", "heads", "head")  # what torchvision calls the last layers, by architecture
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_problem(settings: FusionSettings, cache: Path) -> FusionProblem:
    """Build the problem: ``pretrained`` is a checkpoint, ``options.architecture`` its name in torchvision.

    Args:
        settings: the configuration.
        cache: not used.

    Returns:
        The problem.

    Raises:
        ValueError: for an unknown architecture, or a checkpoint that does not fit it.
        FileNotFoundError: when a path does not exist.
    """
    import torchvision

    for name in settings.options:
        known("option of torchvision", name, ("architecture",))
    architecture = str(settings.options.get("architecture", ""))
    if architecture not in torchvision.models.list_models():
        hint = nearest(architecture, torchvision.models.list_models())
        raise ValueError(f"unknown torchvision architecture '{architecture}' in options.architecture{hint}")
    pretrained = _state(settings.path(str(settings.pretrained)))
    backbone, head = _without_head(torchvision.models.get_model(architecture, weights=None))
    _load(backbone, {key: pretrained[key] for key in pretrained if not key.startswith(head + ".")}, "pretrained")
    collate = _collate(settings.image_size or 224)
    tasks = [_task(settings, task, architecture, head, collate) for task in settings.tasks]
    origin = Origin.at(str(settings.pretrained), settings.path(str(settings.pretrained)))
    heads = f"left out: add the tensors under '{head}.' of a task's own state dict"
    return FusionProblem(backbone.eval(), tuple(tasks), _save, {}, origin, heads)


def _task(settings: FusionSettings, task: TaskSettings, architecture: str, head: str, collate: Any) -> FusionTask:
    import torchvision

    path, classes = settings.path(task.model), task_classes(settings, task)
    state = _state(path)
    count = next((len(tensor) for key, tensor in reversed(state.items()) if key.startswith(head + ".")), 0)
    if not count:
        raise ValueError(f"task '{task.name}': {path} has no tensor under '{head}.': a head is needed")
    if count != len(classes):
        raise ValueError(f"task '{task.name}': the head of {path} gives {count} classes, {len(classes)} are named")
    whole = torchvision.models.get_model(architecture, weights=None, num_classes=count)
    own = {key: tensor for key, tensor in state.items() if key.startswith(head + ".")}
    _load(getattr(whole, head), {key.removeprefix(head + "."): tensor for key, tensor in own.items()}, task.name)
    model = {key: tensor for key, tensor in state.items() if key not in own}
    sets, origin = task_samples(settings, task, collate), Origin.at(task.model, path)
    return FusionTask(task.name, classes, model, Inside.stripped(whole, ""), *sets, origin=origin)


def _without_head(module: nn.Module) -> tuple[nn.Module, str]:
    head = next((name for name in HEADS if isinstance(getattr(module, name, None), nn.Module)), None)
    if head is None:
        raise ValueError(f"{type(module).__name__}: has none of the heads {', '.join(HEADS)}")
    setattr(module, head, nn.Identity())
    return module, head


def _load(module: nn.Module, state: State, what: str) -> None:
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(
            f"{what}: the checkpoint does not fit {type(module).__name__}: {' '.join(lines[1:2])}"
        ) from None


def _state(path: Path) -> dict[str, Tensor]:
    """A state dict in float32, its counters as they are."""
    source = open_model(path, str(path))
    state = {key: source.read(key, 0, spec.numel).view(spec.shape) for key, spec in source.specs.items()}
    return {key: tensor.float() if tensor.is_floating_point() else tensor.clone() for key, tensor in state.items()}


def _collate(side: int) -> Any:
    from PIL import Image, UnidentifiedImageError
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            v2.Resize((side, side), antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, DEVIATION),
        ]
    )

    def collate(paths: list[Path]) -> Tensor:
        images = []
        for path in paths:
            try:
                with Image.open(path) as image:
                    images.append(steps(image.convert("RGB")))
            except (UnidentifiedImageError, OSError) as error:
                raise ValueError(f"{path}: not a readable image ({error})") from None
        return torch.stack(images)

    return collate


def _save(state: Mapping[str, Tensor], folder: Path) -> None:
    save_file(
        {key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
