"""Every way of fusing that a run compares, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from merging.adamerging import adamerging
from merging.adaptation import UnlabelledTask
from merging.adapted import AdaptedMerge, Observe, Step
from merging.concrete_merging import MaskSettings, concrete_adamerging, concrete_task_arithmetic
from merging.family import Family
from merging.fusion.config import (
    AdaMergingSettings,
    ConcreteAdaMergingSettings,
    ConcreteSettings,
    DareSettings,
    NoSettings,
    ScaledSettings,
    TiesSettings,
    TrainedMethod,
)
from merging.fusion.evaluation import accuracies, mean
from merging.fusion.problem import FusionProblem
from merging.registry import merge
from merging.result import MergeResult, State


@dataclass(frozen=True)
class Fused:
    """What one method came to.

    Args:
        state: the merged model; ``None`` for the individual models.
        accuracy: task → accuracy on the test set.
        provenance: of the merge, JSON-serialisable.
        scaling: scaling factor → mean accuracy, where several were tried.
        adapted: coefficients, density and losses, where the method was trained.
        curve: step → task → accuracy.
    """

    state: State | None
    accuracy: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)
    scaling: dict[float, float] = field(default_factory=dict)
    adapted: AdaptedMerge | None = None
    curve: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What methods work on.

    Args:
        problem: module, tasks and data.
        family: task vectors.
        seed: of batches and masks.
        progress: called after every step, with steps done and in total.
    """

    problem: FusionProblem
    family: Family
    seed: int
    progress: Callable[[int, int], None] = lambda done, total: None

    def evaluated(self, result: MergeResult) -> Fused:
        """A merge and its accuracies."""
        return Fused(result.state, accuracies(self.problem, result.state), result.provenance)

    def unlabelled(self, batch: int) -> list[UnlabelledTask]:
        """The tasks as merging sees them; every call begins the same sequence of batches."""
        made = []
        for index, task in enumerate(self.problem.tasks):
            endless = task.unlabelled.endless(batch, torch.Generator().manual_seed(1000 * self.seed + index))
            made.append(UnlabelledTask(task.name, endless.__next__, task.logits, task.loss))
        return made


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Args:
        label: what reports call it.
        run: takes the context and the method's section of the configuration.
        paper: where it comes from; empty where :data:`merging.METHODS` says so, or nothing is merged.
    """

    label: str
    run: Callable[[Context, Any], Fused]
    paper: str = ""


def _individual(context: Context, options: NoSettings) -> Fused:
    found = {}
    for task, source in zip(context.problem.tasks, context.family.sources[1]):
        state = _whole_state(source)
        found.update(accuracies(context.problem, state, [task]))
    return Fused(None, found)


def _whole_state(source: Any) -> dict[str, torch.Tensor]:
    return {key: source.read(key, 0, spec.numel).view(spec.shape) for key, spec in source.specs.items()}


def _pretrained(context: Context, options: NoSettings) -> Fused:
    state = {key: tensor.detach() for key, tensor in context.problem.module.state_dict().items()}
    return Fused(None, accuracies(context.problem, state))


def _averaging(context: Context, options: NoSettings) -> Fused:
    return context.evaluated(_merged(context, "averaging", {}))


def _task_arithmetic(context: Context, options: ScaledSettings) -> Fused:
    return _best(context, "task_arithmetic", options, {})


def _ties(context: Context, options: TiesSettings) -> Fused:
    return _best(context, "ties", options, {"density": options.density})


def _dare(context: Context, options: DareSettings) -> Fused:
    return _best(context, "dare", options, {"drop_rate": options.drop_rate, "seed": context.seed})


def _merged(context: Context, method: str, options: Mapping[str, Any]) -> MergeResult:
    base, models = context.family.sources
    return merge(method, base, list(models), batch_norm="mixture", **options)


def _best(context: Context, method: str, options: ScaledSettings, given: Mapping[str, Any]) -> Fused:
    """The scaling factor with the best mean accuracy on the test sets: an advantage that a user would not have."""
    best: Fused | None = None
    tried = {}
    for number, factor in enumerate(options.scaling_factors, 1):
        found = context.evaluated(_merged(context, method, {**given, "scaling_factor": factor}))
        tried[factor] = mean(found.accuracy)
        if best is None or tried[factor] > mean(best.accuracy):
            best = found
        context.progress(number, len(options.scaling_factors))
    assert best is not None  # the configuration asks for at least one
    return Fused(best.state, best.accuracy, best.provenance, tried)


def _adamerging(granularity: str) -> Callable[[Context, AdaMergingSettings], Fused]:
    def run(context: Context, options: AdaMergingSettings) -> Fused:
        curve: dict[int, dict[str, float]] = {}
        done = adamerging(
            context.family,
            context.unlabelled(options.batch),
            granularity=granularity,
            scaling_factor=options.scaling_factor,
            steps=options.steps,
            learning_rate=options.learning_rate,
            mode=options.mode,
            observe=_observer(context, options, options.steps, curve),
        )
        return _adapted(context, done, curve)

    return run


def _concrete_task_arithmetic(context: Context, options: ConcreteSettings) -> Fused:
    curve: dict[int, dict[str, float]] = {}
    done = concrete_task_arithmetic(
        context.family,
        context.unlabelled(options.batch),
        scaling_factor=options.scaling_factor,
        settings=_mask_settings(context, options),
        observe=_observer(context, options, options.steps, curve),
    )
    return _adapted(context, done, curve)


def _concrete_adamerging(granularity: str) -> Callable[[Context, ConcreteAdaMergingSettings], Fused]:
    def run(context: Context, options: ConcreteAdaMergingSettings) -> Fused:
        curve: dict[int, dict[str, float]] = {}
        total = options.steps + options.coefficient_steps
        done = concrete_adamerging(
            context.family,
            context.unlabelled(options.batch),
            granularity=granularity,
            scaling_factor=options.scaling_factor,
            settings=_mask_settings(context, options),
            inner_learning_rate=options.inner_learning_rate,
            second_order=options.second_order,
            coefficient_steps=options.coefficient_steps,
            coefficient_learning_rate=options.coefficient_learning_rate,
            observe=_observer(context, options, total, curve),
        )
        return _adapted(context, done, curve)

    return run


def _mask_settings(context: Context, options: ConcreteSettings) -> MaskSettings:
    return MaskSettings(
        steps=options.steps,
        learning_rate=options.learning_rate,
        temperature=options.temperature,
        initial_logits=options.initial_logits,
        seed=context.seed,
        final_mask=options.final_mask,
        mode=options.mode,
    )


def _observer(context: Context, options: TrainedMethod, total: int, curve: dict[int, dict[str, float]]) -> Observe:
    def observe(step: Step) -> None:
        context.progress(step.number, total)
        if options.evaluate_every and step.number % options.evaluate_every == 0:
            weights = step.merge()
            state = {**weights.family.fixed, **{key: leaf.detach() for key, leaf in weights.leaves.items()}}
            curve[step.number] = accuracies(context.problem, state)

    return observe


def _adapted(context: Context, done: AdaptedMerge, curve: dict[int, dict[str, float]]) -> Fused:
    found = context.evaluated(done.result)
    return Fused(found.state, found.accuracy, found.provenance, adapted=done, curve=curve)


_ADAMERGING = "Yang et al., AdaMerging, ICLR 2024"
_CONCRETE = "Tang et al., Concrete Subspace Learning, 2023, arXiv 2312.06173"

METHODS: dict[str, Method] = {
    "individual": Method("Individual models", _individual),
    "pretrained": Method("Pretrained", _pretrained),
    "averaging": Method("Weight averaging", _averaging),
    "task_arithmetic": Method("Task arithmetic (best λ)", _task_arithmetic),
    "ties": Method("TIES-Merging (best λ)", _ties),
    "dare": Method("DARE (best λ)", _dare),
    "adamerging_task_wise": Method("Task-wise AdaMerging", _adamerging("task"), _ADAMERGING),
    "adamerging_layer_wise": Method("Layer-wise AdaMerging", _adamerging("tensor"), _ADAMERGING),
    "concrete_task_arithmetic": Method("Concrete task arithmetic", _concrete_task_arithmetic, _CONCRETE),
    "concrete_adamerging_task_wise": Method("Concrete task-wise AdaMerging", _concrete_adamerging("task"), _CONCRETE),
    "concrete_adamerging_layer_wise": Method(
        "Concrete layer-wise AdaMerging", _concrete_adamerging("tensor"), _CONCRETE
    ),
}
