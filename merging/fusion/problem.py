"""What is fused: one pretrained module, and per task a fine-tuned model with its head and its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from merging.entropy import entropy_loss
from merging.family import Forward
from merging.opening import open_model
from merging.result import State
from merging.sources import TensorSource


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Args:
        name: what the configuration calls it.
        files: its weights, hashed for the provenance; none where a hub keeps them.
    """

    name: str
    files: tuple[Path, ...] = ()

    @classmethod
    def at(cls, name: str, place: Path) -> Origin:
        """The model at a path: a file, or the weights in a folder."""
        if place.is_file():
            return cls(name, (place,))
        return cls(name, tuple(sorted(place.glob("*.safetensors")) or sorted(place.glob("*model*.bin"))))


@dataclass(frozen=True)
class Samples:
    """Inputs with or without labels.

    Args:
        items: what ``collate`` takes a list of: paths, arrays, texts.
        labels: index of the class of each, or the number that is to be predicted; or ``None``.
        collate: makes one batch of some items.
        where: where they come from, for messages.
    """

    items: Sequence[Any]
    labels: Sequence[int] | Sequence[float] | None
    collate: Callable[[list[Any]], Any]
    where: str

    def batches(self, size: int) -> Iterator[tuple[Any, list[float]]]:
        """All samples in order, in batches of at most ``size``; with their labels, none where there are none."""
        for start in range(0, len(self.items), size):
            chosen = range(start, min(start + size, len(self.items)))
            labels = [] if self.labels is None else [self.labels[place] for place in chosen]
            yield self.collate([self.items[place] for place in chosen]), labels

    def endless(self, size: int, generator: torch.Generator) -> Iterator[Any]:
        """Batches of exactly ``size`` without labels, shuffled anew whenever all have been seen; fewer if there are."""
        size = min(size, len(self.items))
        while True:
            order = torch.randperm(len(self.items), generator=generator).tolist()
            for start in range(0, len(order) - size + 1, size):
                yield self.collate([self.items[place] for place in order[start : start + size]])


@dataclass(frozen=True)
class FusionTask:
    """One task.

    Args:
        name: of the task.
        classes: names, in the order of the logits.
        model: the fine-tuned weights, keys as those of the pretrained module: a path, or a mapping.
        logits: takes a forward function and a batch, and gives the logits.
        unlabelled: what entropies are computed on.
        test: what accuracies are computed on.
        loss: see :class:`merging.UnlabelledTask`.
        predict: from logits to class indices, or to numbers.
        metric: ``accuracy``, or ``spearman``: the rank correlation of predicted and true numbers.
        origin: where the model comes from.
    """

    name: str
    classes: tuple[str, ...]
    model: Path | State
    logits: Callable[[Forward, Any], Tensor]
    unlabelled: Samples
    test: Samples
    loss: Callable[[Tensor], Tensor] = entropy_loss
    predict: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(dim=-1)
    metric: Literal["accuracy", "spearman"] = "accuracy"
    origin: Origin | None = None

    def source(self) -> TensorSource:
        """The fine-tuned weights, under a name that says whose they are.

        Raises:
            ValueError: see :func:`merging.opening.open_model`.
            FileNotFoundError: when a path does not exist.
        """
        source = open_model(self.model, "model")
        place = self.origin.name if self.origin else source.name if source.files else ""
        source.name = f"task '{self.name}'" + (f" ({place})" if place else "")
        return source


@dataclass(frozen=True)
class FusionProblem:
    """A pretrained module and the tasks that were fine-tuned from it.

    Args:
        module: the pretrained model, without heads.
        tasks: at least one.
        save: writes a merged state into a folder, in the format that the models came in.
        training: per task, what its fine-tuning reports; empty where the models were given.
        origin: where the pretrained model comes from.
        heads: how a merged model gets the head of a task, for its provenance.
    """

    module: nn.Module
    tasks: tuple[FusionTask, ...]
    save: Callable[[State, Path], None]
    training: dict[str, dict[str, Any]]
    origin: Origin | None = None
    heads: str = ""


@dataclass(frozen=True)
class Inside:
    """The logits of a classifier whose backbone has the merged weights and whose head keeps its own.

    Args:
        module: the fine-tuned classifier, head included.
        prefix: what the keys of its backbone begin with.
        order: place in the head of every class of the task; ``None`` where they have the same order.
    """

    module: nn.Module
    prefix: str
    order: tuple[int, ...] | None = None

    def __call__(self, forward: Forward, batch: Any) -> Tensor:
        """See :class:`FusionTask`."""
        inner = forward.inside(self.module, self.prefix)
        output = inner(**batch) if isinstance(batch, dict) else inner(batch)
        logits = output.logits if hasattr(output, "logits") else output
        return logits if self.order is None else logits[:, list(self.order)]

    @classmethod
    def stripped(cls, module: nn.Module, prefix: str, order: tuple[int, ...] | None = None) -> Inside:
        """The classifier with the memory of its backbone given back: merged weights take its place in every call."""
        module.eval().requires_grad_(False)
        for key, parameter in module.named_parameters():
            if key.startswith(prefix) and prefix:
                parameter.data = parameter.data.new_empty(0)
        return cls(module, prefix, order)


def check_problem(problem: FusionProblem) -> None:
    """Refuse tasks that nothing can be learned or measured on.

    Raises:
        ValueError: one sentence that names the task: no task, a name that comes twice, fewer than two classes, an empty
            set, a label out of range, a test set without labels.
    """
    if not problem.tasks:
        raise ValueError("expected at least one task, got none")
    twice = [name for name, count in Counter(task.name for task in problem.tasks).items() if count > 1]
    if twice:
        raise ValueError(f"task '{twice[0]}': the name is given twice")
    for task in problem.tasks:
        if len(task.classes) < 2:
            raise ValueError(
                f"task '{task.name}': has {len(task.classes)} class; expected at least 2, or its entropy is always 0"
            )
        for kind, samples in (("unlabelled", task.unlabelled), ("test", task.test)):
            if not len(samples.items):
                raise ValueError(f"task '{task.name}': the {kind} set is empty ({samples.where})")
        _check_labels(task)


def _check_labels(task: FusionTask) -> None:
    labels = task.test.labels
    if labels is None:
        raise ValueError(f"task '{task.name}': the test set has no labels ({task.test.where})")
    if task.metric == "spearman":
        return
    outside = [label for label in labels if not 0 <= label < len(task.classes)]
    if outside:
        raise ValueError(
            f"task '{task.name}': label {outside[0]} in {task.test.where}; expected 0 to {len(task.classes) - 1}"
        )
