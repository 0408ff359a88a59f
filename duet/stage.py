"""One stage of the loop: train on a task, merge with the previous model, put the head together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

import merging
from duet.config import RunConfig
from duet.datasets.training import TrainingSet
from duet.detectors.base import Detector, DirectionalTarget, DomainStatistics, StageProgress, StageRequest
from merging.sign_conflict import sign_conflict_rate

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class StageInput:
    """What stage t starts from.

    Args:
        task: number of the task, from 1.
        classes: the classes that are learned.
        data: the prepared training set, labelled with these classes.
        images: its image files, for re-estimating BatchNorm statistics.
        folder: where the trainer may write.
        statistics: colour statistics of the task's domain.
        past: colour statistics of the earlier domains.
        base: shared tensors of θ_0.
        previous: the merged detector of t − 1, or None in the first stage.
        before_previous: shared tensors of θ_(t−2); θ_0 at t = 2.
    """

    task: int
    classes: tuple[str, ...]
    data: TrainingSet
    images: Sequence[Path]
    folder: Path
    statistics: DomainStatistics
    past: tuple[DomainStatistics, ...]
    base: State
    previous: Detector | None
    before_previous: State | None


@dataclass(frozen=True)
class StageResult:
    """What a stage produced.

    Args:
        detector: the merged detector θ_t.
        losses: per epoch, loss name to value; calibration epochs follow with the names prefixed.
        merge: method, alpha per layer and sign-conflict rate, or None in the first stage.
        seconds: durations of train, merge and calibrate.
    """

    detector: Detector
    losses: list[dict[str, float]]
    merge: dict[str, object] | None
    seconds: dict[str, float] = field(default_factory=dict)


def first_stage(
    start: Detector, item: StageInput, config: RunConfig, progress: Callable[[StageProgress], None] | None
) -> StageResult:
    """Stage 1: train by the detector's own loss (DuET, M3)."""
    seed = stage_seed(config.seed, item.task)
    detector = start.with_classes(item.classes, seed)
    outcome = detector.train_stage(_request(item, config, config.train.epochs, progress))
    return StageResult(detector, _plain(outcome.losses), None, {"train": outcome.seconds})


def later_stage(item: StageInput, config: RunConfig, progress: Callable[[StageProgress], None] | None) -> StageResult:
    """Stage t ≥ 2: train from θ_(t−1) with the teacher, merge, build the head, calibrate (DuET, Algorithm 1)."""
    previous, method = item.previous, config.method
    old_state = previous.state()
    detector = previous.grown(item.classes, stage_seed(config.seed, item.task), method.head)
    shared = detector.split(method.towers == "shared").shared_parameters
    directional = None
    if method.directional_consistency is not None:
        direction = {key: old_state[key] - item.before_previous[key] for key in shared}
        directional = DirectionalTarget({key: old_state[key] for key in shared}, direction)
    request = _request(item, config, config.train.epochs, progress)
    outcome = detector.train_stage(replace(request, teacher=previous, directional=directional))
    started = time.perf_counter()
    merge = merge_stage(detector, old_state, item, config)
    seconds = {"train": outcome.seconds, "merge": time.perf_counter() - started}
    losses = _plain(outcome.losses)
    if method.calibration_epochs:
        calibration = replace(
            _request(item, config, method.calibration_epochs, progress), teacher=previous, head_only=True
        )
        outcome = detector.train_stage(calibration)
        seconds["calibrate"] = outcome.seconds
        losses += [{f"calibration_{name}": value for name, value in epoch.items()} for epoch in outcome.losses]
        if method.old_rows == "restore":
            detector.load_state({**detector.state(), **_restored_rows(detector, old_state, config)})
    return StageResult(detector, losses, merge, seconds)


def merge_stage(detector: Detector, old_state: State, item: StageInput, config: RunConfig) -> dict[str, object]:
    """Merge a freshly trained detector with its predecessor, in place.

    Shared tensors by the method's merger, BatchNorm statistics by its policy, the head by its policies.

    Returns:
        The ``merge`` entry of results.json.
    """
    method, split, trained = config.method, detector.split(config.method.towers == "shared"), detector.state()
    shared = {key: trained[key] for key in split.shared}
    previous = {key: old_state[key] for key in split.shared}
    parameters = split.shared_parameters
    conflict = sign_conflict_rate(
        {key: shared[key] - previous[key] for key in parameters},
        {key: previous[key] - item.before_previous[key] for key in parameters},
    )
    alpha: dict[str, float] = {}
    if method.merge is not None:
        result = merging.merge(method.merge.name, item.base, [previous, shared], **method.merge.options)
        merged = dict(result.state)
        alpha = dict(result.coefficients or {})
        if method.batch_norm != "merge":
            merged.update({key: shared[key] for key in split.shared if key not in split.parameters})
    else:
        merged = shared
    head = detector.merged_head(old_state, method)
    detector.load_state({**merged, **head})
    if method.batch_norm == "recalibrate":
        detector.estimate_batch_norm(item.images, config.train.image_size)
    name = method.merge.name if method.merge else None
    return {"method": name, "alpha": alpha, "sign_conflict_rate": conflict}


def stage_seed(seed: int, task: int) -> int:
    """The seed of a stage: independent of how many stages ran before it in this process."""
    return seed * 100 + task


def _request(
    item: StageInput, config: RunConfig, epochs: int, progress: Callable[[StageProgress], None] | None
) -> StageRequest:
    replayed = config.method.replay is not None and item.past
    return StageRequest(
        data=item.data.data,
        folder=item.folder,
        seed=stage_seed(config.seed, item.task),
        train=config.train,
        method=config.method,
        epochs=epochs,
        past_domains=item.past if replayed else (),
        own_domain=item.statistics if replayed else None,
        progress=progress,
    )


def _restored_rows(detector: Detector, old_state: State, config: RunConfig) -> dict[str, Tensor]:
    kept = config.method.model_copy(update={"towers": "new"})
    return detector.merged_head(old_state, kept)


def _plain(losses: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [dict(epoch) for epoch in losses]
