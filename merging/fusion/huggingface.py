"""Hugging Face models: image and text classifiers, CLIP with zero-shot heads, and text-to-text models with LoRA.

A name is a folder on this machine, or a model of the hub where one is reachable.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.entropy import first_token_entropy
from merging.family import Forward
from merging.fusion.checkpoints import (
    check_tokenizer,
    check_vocabulary,
    open_named,
    open_network,
    opening,
    origin_of,
)
from merging.fusion.config import FusionSettings, TaskSettings
from merging.fusion.data import class_words, task_classes, task_samples
from merging.fusion.problem import FusionProblem, FusionTask, Inside
from merging.result import State

Collate = Callable[[list[Any]], Any]


def image_problem(settings: FusionSettings, cache: Path) -> FusionProblem:
    """Image classifiers such as ViT, each task's head from its own checkpoint.

    Args:
        settings: the configuration.
        cache: not used.

    Returns:
        The problem.

    Raises:
        ValueError: when a model cannot be opened, or its head does not fit the classes.
    """
    transformers = _transformers()
    processor = open_named(transformers.AutoImageProcessor, settings, str(settings.pretrained))
    return _classifiers(settings, transformers.AutoModelForImageClassification, _images(processor), processor)


def text_problem_of(settings: FusionSettings, cache: Path) -> FusionProblem:
    """Text classifiers such as BERT, each task's head from its own checkpoint; arguments as :func:`image_problem`."""
    transformers = _transformers()
    tokenizer = open_named(transformers.AutoTokenizer, settings, str(settings.pretrained))
    check_tokenizer(settings, tokenizer)
    for task in settings.tasks:
        check_vocabulary(settings, task, tokenizer, transformers.AutoTokenizer)
    return _classifiers(
        settings, transformers.AutoModelForSequenceClassification, _texts(tokenizer, settings.length), tokenizer
    )


def clip_problem(settings: FusionSettings, cache: Path) -> FusionProblem:
    """CLIP's vision towers under zero-shot heads; arguments as :func:`image_problem`.

    The head of a task is the mean, over the templates, of the unit text embeddings of each class, made a unit vector
    again, times CLIP's own logit scale. Text tower and projection are the pretrained model's and stand still.
    """
    transformers = _transformers()
    whole = open_network(transformers.CLIPModel, settings, str(settings.pretrained)).eval()
    processor = open_named(transformers.CLIPProcessor, settings, str(settings.pretrained))
    check_tokenizer(settings, processor.tokenizer)
    module = open_network(transformers.CLIPVisionModel, settings, str(settings.pretrained)).eval()
    tasks = []
    for task in settings.tasks:
        tuned = open_network(transformers.CLIPVisionModel, settings, task.model)
        classes = task_classes(settings, task)
        weights = zero_shot_weights(whole, processor.tokenizer, task, class_words(task, classes))
        sets = task_samples(settings, task, _images(processor.image_processor))
        head = ClipHead(whole.visual_projection, weights)
        origin = origin_of(settings, task.model)
        tasks.append(FusionTask(task.name, classes, tuned.state_dict(), head, *sets, origin=origin))
    heads = "none: a vision tower; zero-shot heads are made by the pretrained CLIP's text tower and projections"
    origin = origin_of(settings, str(settings.pretrained))
    return FusionProblem(module, tuple(tasks), _saver(module, processor), {}, origin, heads)


class ClipHead:
    """Logits of images: scale · cos(image embedding, class embedding).

    Args:
        projection: from the vision tower's pooled output to the common space.
        weights: ``(C, D)``, scale included.
    """

    def __init__(self, projection: nn.Module, weights: Tensor) -> None:
        self.projection = copy.deepcopy(projection).requires_grad_(False)
        self.weights = weights

    def __call__(self, forward: Forward, batch: dict[str, Tensor]) -> Tensor:
        """See :class:`merging.fusion.problem.FusionTask`."""
        features = self.projection(forward(**batch).pooler_output)
        return nn.functional.normalize(features, dim=-1) @ self.weights.T


@torch.no_grad()
def zero_shot_weights(model: nn.Module, tokenizer: Any, task: TaskSettings, names: tuple[str, ...]) -> Tensor:
    """One row per class, ``(C, D)``: see :func:`clip_problem`.

    Raises:
        ValueError: when a template has no place for a class.
    """
    if any("{}" not in template for template in task.head.templates):
        raise ValueError(f"task '{task.name}': a template of the head has no {{}}")
    rows = []
    for name in names:
        batch = tokenizer([text.replace("{}", name) for text in task.head.templates], padding=True, return_tensors="pt")
        pooled = model.text_model(**batch).pooler_output
        units = nn.functional.normalize(model.text_projection(pooled), dim=-1)
        rows.append(nn.functional.normalize(units.mean(0), dim=-1))
    return torch.stack(rows) * model.logit_scale.exp()


def text2text_problem(settings: FusionSettings, cache: Path) -> FusionProblem:
    """Flan-T5 and its kind, with full checkpoints or LoRA adapters; arguments as :func:`image_problem`.

    The loss is the entropy of the first answer token over the whole vocabulary. A prediction is the class whose answer
    begins with the most probable first token among the classes' own; answers must begin differently. For numbers
    (``metric: spearman``) it is the mean of the classes under the probabilities of their first tokens.
    """
    transformers = _transformers()
    tokenizer = open_named(transformers.AutoTokenizer, settings, str(settings.pretrained))
    check_tokenizer(settings, tokenizer)
    module = open_network(transformers.AutoModelForSeq2SeqLM, settings, str(settings.pretrained)).eval()
    tasks = []
    answer = FirstToken(module.config.decoder_start_token_id)
    for task in settings.tasks:
        check_vocabulary(settings, task, tokenizer, transformers.AutoTokenizer)
        classes = task_classes(settings, task)
        firsts = first_tokens(tokenizer, task, class_words(task, classes))
        sets = task_samples(settings, task, _prompts(tokenizer, settings.length, task))
        predict = _expectation(firsts, _numbers(task, classes)) if task.metric == "spearman" else _choice(firsts)
        tuned = _tuned(settings, task, module, transformers)
        how, origin = (first_token_entropy, predict, task.metric), origin_of(settings, task.model)
        tasks.append(FusionTask(task.name, classes, tuned, answer, *sets, *how, origin))
    origin, heads = origin_of(settings, str(settings.pretrained)), "none are needed: the model answers in words"
    return FusionProblem(module, tuple(tasks), _saver(module, tokenizer), {}, origin, heads)


class FirstToken:
    """Logits of the first answer token, ``(N, 1, V)``.

    Args:
        start: the token that decoding begins with.
    """

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, forward: Forward, batch: dict[str, Tensor]) -> Tensor:
        """See :class:`merging.fusion.problem.FusionTask`."""
        start = torch.full((len(batch["input_ids"]), 1), self.start)
        return forward(**batch, decoder_input_ids=start).logits


def first_tokens(tokenizer: Any, task: TaskSettings, names: tuple[str, ...]) -> list[int]:
    """The first token of every class's answer.

    Raises:
        ValueError: when two classes begin with the same token.
    """
    firsts = [tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in names]
    if len(set(firsts)) < len(firsts):
        raise ValueError(f"task '{task.name}': two classes begin with the same token; name them otherwise")
    return firsts


def _choice(firsts: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[:, 0, firsts].argmax(-1)


def _expectation(firsts: list[int], values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[:, 0, firsts].softmax(-1) @ values


def _numbers(task: TaskSettings, classes: tuple[str, ...]) -> Tensor:
    try:
        return torch.tensor([float(name) for name in classes])
    except ValueError:
        raise ValueError(f"task '{task.name}': metric spearman needs numbers as classes, got {classes}") from None


def _tuned(settings: FusionSettings, task: TaskSettings, module: nn.Module, transformers: Any) -> State:
    """A fine-tuned state; a LoRA adapter is merged into a copy of the pretrained model."""
    place = settings.path(task.model)
    if (place / "adapter_config.json").is_file() or (not place.exists() and "lora" in task.model.lower()):
        try:
            from peft import PeftModel
        except ImportError:
            raise ValueError("LoRA adapters need peft: pip install 'duet-detection[language]'") from None
        name = str(place) if place.exists() else task.model
        with opening(settings, task.model, "a LoRA adapter of the pretrained model"):
            return PeftModel.from_pretrained(copy.deepcopy(module), name).merge_and_unload().state_dict()
    return open_network(transformers.AutoModelForSeq2SeqLM, settings, task.model).state_dict()


def _classifiers(settings: FusionSettings, kind: Any, collate: Collate, processor: Any) -> FusionProblem:
    pretrained = open_network(kind, settings, str(settings.pretrained), head=False).eval()
    module, tasks = pretrained.base_model, []
    for task in settings.tasks:
        whole = open_network(kind, settings, task.model)
        classes = task_classes(settings, task)
        if whole.config.num_labels != len(classes):
            raise ValueError(
                f"task '{task.name}': the head of {task.model} gives {whole.config.num_labels} classes, "
                f"{len(classes)} are named"
            )
        prefix = whole.base_model_prefix + "."
        model = {key: tensor.clone() for key, tensor in whole.base_model.state_dict().items()}
        order = head_order(task, class_words(task, classes), whole.config.id2label)
        sets = task_samples(settings, task, collate)
        head, origin = Inside.stripped(whole, prefix, order), origin_of(settings, task.model)
        tasks.append(FusionTask(task.name, classes, model, head, *sets, origin=origin))
    heads = (
        "left out: open this folder as a classifier with the configuration of a task's own model, and load that "
        f"model's tensors outside '{pretrained.base_model_prefix}.' into it"
    )
    origin = origin_of(settings, str(settings.pretrained))
    return FusionProblem(module, tuple(tasks), _saver(module, processor), {}, origin, heads)


def head_order(task: TaskSettings, names: Sequence[str], id2label: Mapping[int, str]) -> tuple[int, ...] | None:
    """Where the classes of a task stand in the head of its checkpoint, by name.

    Case and ``_`` for a space make no difference. Classes go by position where the checkpoint does not name its own
    (``LABEL_0``, …), and where the task only numbers them, from 0 on.

    Args:
        task: for messages.
        names: of the task's classes, in the order of the configuration.
        id2label: place in the head → name, as the checkpoint's configuration has it.

    Returns:
        The place of every class; ``None`` where classes and head have the same order.

    Raises:
        ValueError: when the checkpoint names other classes.
    """
    theirs = [str(id2label.get(place, "")) for place in range(len(names))]
    numbers = [str(place) for place in range(len(names))]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in theirs) or list(names) == numbers:
        return None
    wanted, found = ([name.casefold().replace("_", " ") for name in group] for group in (names, theirs))
    if sorted(wanted) != sorted(found):
        raise ValueError(
            f"task '{task.name}': {task.model} calls its classes {_some(theirs)}, the task {_some(names)}; "
            "write its names as class_names, in the order of classes"
        )
    order = tuple(found.index(name) for name in wanted)
    return None if order == tuple(range(len(names))) else order


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _images(processor: Any) -> Collate:
    from PIL import Image, UnidentifiedImageError

    def collate(paths: list[Path]) -> dict[str, Tensor]:
        images = []
        for path in paths:
            try:
                with Image.open(path) as image:
                    images.append(image.convert("RGB"))
            except (UnidentifiedImageError, OSError) as error:
                raise ValueError(f"{path}: not a readable image ({error})") from None
        return {"pixel_values": processor(images, return_tensors="pt")["pixel_values"]}

    return collate


def _texts(tokenizer: Any, length: int) -> Collate:
    def collate(items: list[Any]) -> dict[str, Tensor]:
        pairs = bool(items) and isinstance(items[0], tuple)
        first, second = ([pair[0] for pair in items], [pair[1] for pair in items]) if pairs else (items, None)
        return dict(tokenizer(first, second, padding=True, truncation=True, max_length=length, return_tensors="pt"))

    return collate


def _prompts(tokenizer: Any, length: int, task: TaskSettings) -> Collate:
    inner = _texts(tokenizer, length)

    def collate(items: list[Any]) -> dict[str, Tensor]:
        pairs = [item if isinstance(item, tuple) else (item, "") for item in items]
        return inner([task.prompt.replace("{text}", text).replace("{text_pair}", pair) for text, pair in pairs])

    return collate


def _saver(module: nn.Module, processor: Any) -> Callable[[State, Path], None]:
    """Writes a Hugging Face folder with tokenizer or image processor."""

    def save(state: State, folder: Path) -> None:
        merged = copy.deepcopy(module)
        merged.load_state_dict(dict(state))
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)

    return save


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("Hugging Face models need transformers: pip install 'duet-detection[language]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
