"""The embedded vision problem: a small network pretrained on letters, and tasks fine-tuned from it.

Everything is made here, without a network: the pictures are those of :mod:`merging.fusion.pictures`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from merging.checks import known
from merging.fusion.cache import cached_weights, load_weights
from merging.fusion.finetune import TrainingPlan, probe, train
from merging.fusion.pictures import LETTER_TASK, PICTURE_TASKS, PictureTask, pictures
from merging.fusion.problem import FusionProblem, FusionTask, Inside, Origin, Samples
from merging.result import State

PRETRAINING, VERSION = 1, 2  # of everything that decides the weights but stands in no option
WIDTH = 144
# What a gentle fine-tuning learns well; `turn` and `filter` are harder, and the entropy of their models says less.
TASKS = ("digit", "count", "ink", "corner")


class PictureNet(nn.Sequential):
    """Five convolutions with group normalisation, 350,000 parameters: ``(N, 3, 32, 32)`` to ``(N, 144)``."""

    def __init__(self) -> None:
        layers = [_layer(3, 40, 2), _layer(40, 72, 2), _layer(72, 72, 1), _layer(72, WIDTH, 2), _layer(WIDTH, WIDTH, 1)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def embedded_pictures(
    *,
    seed: int,
    cache: Path,
    tasks: tuple[str, ...] = TASKS,
    pretraining: int = 3000,
    pretraining_epochs: int = 6,
    training: int = 1200,
    unlabelled: int = 300,
    test: int = 400,
    epochs: int = 2,
    learning_rate: float = 5e-4,
) -> FusionProblem:
    """Build the problem; task models come from the cache or are trained now.

    Args:
        seed: of pictures, weights and training.
        cache: folder for trained weights.
        tasks: names in ``PICTURE_TASKS``.
        pretraining: pictures of letters.
        pretraining_epochs: passes over them.
        training: labelled pictures per task.
        unlabelled: pictures per task.
        test: pictures per task.
        epochs: passes of fine-tuning.
        learning_rate: of fine-tuning.

    Returns:
        The problem.

    Raises:
        ValueError: for a task that there is not.
    """
    for name in tasks:
        known("embedded task", name, PICTURE_TASKS)
    module = _seeded(seed)
    recipe: dict[str, Any] = {"name": "letters", "version": PRETRAINING, "seed": seed, "count": pretraining}
    recipe["epochs"] = pretraining_epochs
    path, told, _ = cached_weights(cache, recipe, lambda: _pretrain(module, pretraining, pretraining_epochs, seed))
    module.load_state_dict(load_weights(path))
    origin = Origin("letters", (path,))
    plan = TrainingPlan(epochs, learning_rate, seed=seed)
    made, report = [], {"letters": told}
    for name in tasks:
        task = PICTURE_TASKS[name]
        own = {
            "name": name,
            "from": recipe,
            "version": VERSION,
            "count": training,
            "epochs": epochs,
            "rate": learning_rate,
        }
        path, report[name], _ = cached_weights(cache, own, lambda t=task: _finetune(module, t, training, plan))
        sets = [_samples(task, split, count, seed) for split, count in (("unlabelled", unlabelled), ("test", test))]
        made.append(_task(task, path, sets))
    heads = "left out: the linear head of a task is in its own model's file, under '1.'"
    return FusionProblem(module.eval(), tuple(made), _save, report, origin, heads)


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.GELU())


def _seeded(seed: int) -> PictureNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PictureNet()


def _head(classes: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(WIDTH, classes)


def _collate(items: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(items)).float() / 127.5 - 1.0


def _samples(task: PictureTask, split: str, count: int, seed: int) -> Samples:
    drawn, labels = pictures(task, split, count, seed)
    truth = None if split == "unlabelled" else labels.tolist()
    return Samples(list(drawn), truth, _collate, f"embedded pictures of '{task.name}', {split}")


def _pretrain(module: PictureNet, count: int, epochs: int, seed: int) -> tuple[State, dict[str, Any]]:
    whole = nn.Sequential(module, _head(len(LETTER_TASK.classes), seed))
    plan = TrainingPlan(epochs, 4e-3, seed=seed)
    losses = train(_samples(LETTER_TASK, "train", count, seed), whole, list(whole.parameters()), plan)
    return module.state_dict(), {"losses": losses}


def _finetune(module: PictureNet, task: PictureTask, count: int, plan: TrainingPlan) -> tuple[State, dict[str, Any]]:
    """Head first, on the pretrained features; then the network under that head."""
    backbone, head = copy.deepcopy(module), nn.Linear(WIDTH, len(task.classes))
    samples = _samples(task, "train", count, plan.seed)
    probe(samples, backbone, head)
    whole = nn.Sequential(backbone, head.requires_grad_(False))
    losses = train(samples, whole, list(backbone.parameters()), plan)
    return whole.state_dict(), {"losses": losses}


def _task(task: PictureTask, path: Path, sets: list[Samples]) -> FusionTask:
    """Backbone and head of one cached file, apart."""
    weights = load_weights(path)
    whole = nn.Sequential(PictureNet(), nn.Linear(WIDTH, len(task.classes)))
    whole.load_state_dict(weights)
    backbone = {key.removeprefix("0."): tensor for key, tensor in weights.items() if key.startswith("0.")}
    head, origin = Inside.stripped(whole, "0."), Origin(path.name, (path,))
    return FusionTask(task.name, task.classes, backbone, head, *sets, origin=origin)


def _save(state: State, folder: Path) -> None:
    save_file(
        {key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
