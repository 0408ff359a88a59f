"""One fusion: every method of the configuration, and one result document."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.family import Family, evaluating, forward_of, open_module_family
from merging.files import describe_files, hash_files, versions
from merging.fusion.config import FusionSettings, MethodSettings
from merging.fusion.evaluation import check_logits, mean
from merging.fusion.methods import METHODS, Context, Fused
from merging.fusion.problem import FusionProblem, FusionTask, Origin, check_problem
from merging.fusion.sources import build_problem
from merging.registry import METHODS as CORE
from merging.result import State

PACKAGES = ("transformers", "safetensors")  # what wrote and read the models
PREPARATION = "models and data"
Progress = Callable[[str, int, int], None]
Keep = Callable[[str, FusionProblem, State, Mapping[str, Any], float], None]


def fuse(
    settings: FusionSettings, cache: Path, *, keep: Keep | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run all methods.

    Args:
        settings: the configuration.
        cache: folder for fine-tuned models of the embedded problems, and for task vectors on disk while it runs.
        keep: called with every merged model: name of the method, problem, state, provenance, average accuracy.
        progress: called with the name of a phase, steps done and steps in total.

    Returns:
        The results, JSON-serialisable: see docs/fusion.md.

    Raises:
        ValueError: for whatever does not fit, in one sentence.
        FileNotFoundError: when a path does not exist.
    """
    say = progress or (lambda phase, done, total: None)
    started = time.perf_counter()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    say(PREPARATION, 0, 1)
    problem = build_problem(settings, cache)
    check_problem(problem)
    family = open_family_of(problem, settings, cache)
    say(PREPARATION, 1, 1)
    built = time.perf_counter() - started
    results = fuse_problem(problem, settings.methods, seed=settings.seed, family=family, keep=keep, progress=say)
    return {
        "name": settings.name,
        "kind": settings.kind,
        "seed": settings.seed,
        **results,
        "settings": settings.model_dump(mode="json"),
        "timing": {"models_and_data": built, "total": time.perf_counter() - started},
        "versions": versions(*PACKAGES),
    }


def fuse_problem(
    problem: FusionProblem,
    methods: MethodSettings,
    *,
    seed: int = 0,
    family: Family | None = None,
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run methods on models and data that are open already.

    Args:
        problem: module, tasks and data.
        methods: the methods and their options.
        seed: of batches and masks.
        family: the task vectors; made in float32 when ``None``.
        keep: see :func:`fuse`.
        progress: see :func:`fuse`.

    Returns:
        ``tasks``, ``scalars``, ``methods`` and ``training`` of the results.

    Raises:
        ValueError: for whatever does not fit, in one sentence.
    """
    check_problem(problem)
    family = family or open_module_family(problem.module, [task.source() for task in problem.tasks])
    _check_heads(problem)
    say = progress or (lambda phase, done, total: None)
    record = _inputs(problem) if keep is not None else {}
    lines = []
    for name in [name for name in METHODS if getattr(methods, name) is not None]:
        say(name, 0, 1)
        clock = time.perf_counter()
        context = Context(problem, family, seed, lambda done, total, name=name: say(name, done, total))
        fused = METHODS[name].run(context, getattr(methods, name))
        lines.append(_line(name, fused, time.perf_counter() - clock))
        say(name, 1, 1)
        if keep is not None and fused.state is not None:
            paper = METHODS[name].paper or CORE[name].paper
            provenance = {**fused.provenance, "paper": paper, "accuracy": fused.accuracy, **record}
            keep(name, problem, fused.state, provenance, mean(fused.accuracy))
    _normalise(lines)
    tasks = [_task(task) for task in problem.tasks]
    return {"tasks": tasks, "scalars": family.scalars, "methods": lines, "training": problem.training}


def open_family_of(problem: FusionProblem, settings: FusionSettings, cache: Path) -> Family:
    """The task vectors of a problem, in memory or in mapped files in the cache folder, which go with the process.

    Raises:
        ValueError: see :func:`merging.family.open_module_family`.
    """
    models = [task.source() for task in problem.tasks]
    if settings.vectors != "disk":
        return open_module_family(problem.module, models, dtype=getattr(torch, settings.vectors))
    cache.mkdir(parents=True, exist_ok=True)

    def mapped(index: int, key: str, shape: torch.Size) -> Tensor:
        size = max(shape.numel(), 1)
        # The name goes at once, the space when nothing maps the file any more: nothing is left, even after a kill.
        with tempfile.NamedTemporaryFile(dir=cache, prefix=".vector-") as file:
            vector = torch.from_file(file.name, shared=True, size=size, dtype=torch.float32)
        return vector[: shape.numel()].view(shape)

    return open_module_family(problem.module, models, allocate=mapped)


def _inputs(problem: FusionProblem) -> dict[str, Any]:
    """What every merged model's provenance says of where it comes from: names, files with their sha256, versions."""
    origins = [problem.origin or Origin("the pretrained model"), *(task.origin or Origin("") for task in problem.tasks)]
    hashes = hash_files(file for origin in origins for file in origin.files)
    base, *models = [{"name": origin.name, "files": describe_files(origin.files, hashes)} for origin in origins]
    return {
        "base": base,
        "models": [{"task": task.name, **model} for task, model in zip(problem.tasks, models)],
        "heads": problem.heads,
        "versions": versions(*PACKAGES),
    }


def _check_heads(problem: FusionProblem) -> None:
    """One sample through every head, before hours of work."""
    with evaluating(problem.module), torch.no_grad():
        forward = forward_of(problem.module, problem.module.state_dict())
        for task in problem.tasks:
            batch, _ = next(task.test.batches(1))
            check_logits(task.logits(forward, batch), task)


def _line(name: str, fused: Fused, seconds: float) -> dict[str, Any]:
    adapted = fused.adapted
    return {
        "method": name,
        "label": METHODS[name].label,
        "accuracy": fused.accuracy,
        "average": mean(fused.accuracy),
        "scaling_factors": [{"factor": factor, "average": value} for factor, value in fused.scaling.items()],
        "coefficients": adapted.coefficients if adapted else None,
        "density": adapted.density if adapted else None,
        "losses": [list(row) for row in adapted.losses] if adapted else [],
        "phases": adapted.phases if adapted else [],
        "curve": [{"step": step, "accuracy": values} for step, values in fused.curve.items()],
        "options": fused.provenance.get("options", {}),
        "seconds": seconds,
    }


def _normalise(lines: list[dict[str, Any]]) -> None:
    """Accuracy over that of the task's own model; ``None``, and not in the mean, where that is 0 or not measured."""
    own = next((line["accuracy"] for line in lines if line["method"] == "individual"), {})
    for line in lines:
        ratios = {task: value / own[task] if own.get(task) else None for task, value in line["accuracy"].items()}
        line["normalised"] = ratios
        known = [value for value in ratios.values() if value is not None]
        line["average_normalised"] = sum(known) / len(known) if known else None


def _task(task: FusionTask) -> dict[str, Any]:
    return {
        "name": task.name,
        "classes": list(task.classes),
        "unlabelled": len(task.unlabelled.items),
        "test": len(task.test.items),
        "metric": task.metric,
        "chance": _largest_class(task),
    }


def _largest_class(task: FusionTask) -> float | None:
    """Share of the most frequent class: what a model has that always says the same."""
    if task.metric != "accuracy":
        return None
    return max(Counter(task.test.labels).values()) / len(task.test.labels)
