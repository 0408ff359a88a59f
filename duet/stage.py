"""One stage of the loop: train on a task, merge with the previous model, put the head together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor

import merging
from duet.config import RunConfig
from duet.datasets.images import LabelledImage
from duet.datasets.scene_folder import content_hash
from duet.datasets.training import TrainingSet
from duet.detectors.base import (
    Consolidation,
    Detector,
    DirectionalTarget,
    DomainStatistics,
    StageOutcome,
    StageProgress,
    StageRequest,
)
from duet.errors import TrainingStopped
from duet.kept_trainings import KeptTrainings, Training, keyed_versions
from duet.soundness import refuse_exploded, refuse_not_finite
from duet.stage_data import LOOKED_AT, seen_objects, spread
from duet.state import digest_of
from duet.weights import weights_digest
from merging.layers import is_statistic
from merging.sign_conflict import sign_conflict_rate

State = Mapping[str, Tensor]


OTHER_MERGER = "method.merge.name=duet"  # whose merge cannot grow


@dataclass(frozen=True)
class StageInput:
    """What stage t starts from.

    Args:
        task: number of the task, from 1.
        classes: the classes that are learned.
        data: the prepared training set, labelled with these classes.
        images: its images, with the labels of these classes only.
        folder: where the trainer may write.
        statistics: colour statistics of the task's domain.
        past: colour statistics of the earlier domains.
        base: shared tensors of θ_0.
        previous: the merged detector of t − 1, or None in the first stage.
        before_previous: shared tensors of θ_(t−2); θ_0 at t = 2.
        fisher: Fisher information of the earlier tasks, for mergers that weigh by it.
    """

    task: int
    classes: tuple[str, ...]
    data: TrainingSet
    images: Sequence[LabelledImage]
    folder: Path
    statistics: DomainStatistics
    past: tuple[DomainStatistics, ...]
    base: State
    previous: Detector | None
    before_previous: State | None
    fisher: State | None = None


@dataclass(frozen=True)
class StageResult:
    """What a stage produced.

    Args:
        detector: the merged detector θ_t.
        losses: per epoch, loss name to value; calibration epochs follow with the names prefixed.
        merge: method, alpha per layer and sign-conflict rate, or None in the first stage.
        seconds: durations of statistics (looking at the new pictures), train, merge and calibrate, as far as they took
            place.
        fisher: Fisher information of the tasks until now, where the merger weighs by it.
    """

    detector: Detector
    losses: list[dict[str, float]]
    merge: dict[str, object] | None
    seconds: dict[str, float] = field(default_factory=dict)
    fisher: State | None = None


def first_stage(detector: Detector, outcome: StageOutcome, item: StageInput, config: RunConfig) -> StageResult:
    """Stage 1: what training by the detector's own loss gave (DuET, M3), and its Fisher information where needed."""
    _refuse_broken(detector, config)
    fisher = _fisher(detector, _request(item, config, config.train.epochs, None), config)
    return StageResult(detector, _plain(outcome.losses), None, {"train": outcome.seconds}, fisher)


def later_stage(
    item: StageInput,
    config: RunConfig,
    progress: Callable[[StageProgress], None] | None,
    trainings: KeptTrainings | None = None,
) -> StageResult:
    """Stage t ≥ 2: train from θ_(t−1) with the teacher, merge, build the head, calibrate (DuET, Algorithm 1).

    Args:
        item: what the stage starts from.
        config: of the run.
        progress: called after every step.
        trainings: where trainings are kept for runs that train alike; None keeps none.
    """
    started = time.perf_counter()
    config, rates = _with_rates(config, item)
    config, batch = _with_batch(config, item)
    previous, method = item.previous, config.method
    old_state = previous.state()
    detector = previous.grown(item.classes, stage_seed(config.seed, item.task), method.head, method.new_rows)
    teacher, met = _meet_domain(detector, item, config)
    looking = {"statistics": time.perf_counter() - started} if rates or met else {}
    shared = detector.split(method.towers == "shared").shared_parameters
    directional = None
    if method.directional_consistency is not None:
        direction = {key: old_state[key] - item.before_previous[key] for key in shared}
        directional = DirectionalTarget({key: old_state[key] for key in shared}, direction)
    request = _request(item, config, config.train.epochs, progress)
    request = replace(request, teacher=teacher, directional=directional, consolidation=_held(item, old_state, config))
    detector, outcome = _trained(detector, request, item, trainings)
    _refuse_broken(detector, config)
    started = time.perf_counter()
    fisher = _fisher(detector, request, config)
    merge = {**merge_stage(detector, old_state, item, config, fisher), **rates, **batch}
    seconds = {**looking, "train": outcome.seconds, "merge": time.perf_counter() - started}
    losses = _plain(outcome.losses)
    if method.calibration_epochs:
        calibration = replace(
            _request(item, config, method.calibration_epochs, progress), teacher=teacher, head_only=True
        )
        outcome = detector.train_stage(calibration)
        _refuse_broken(detector, config)
        seconds["calibrate"] = outcome.seconds
        losses += [{f"calibration_{name}": value for name, value in epoch.items()} for epoch in outcome.losses]
        if method.old_rows == "restore":
            detector.load_state({**detector.state(), **_restored_rows(detector, old_state, config)})
    return StageResult(detector, losses, merge, seconds, _added(item.fisher, fisher))


def _with_rates(config: RunConfig, item: StageInput) -> tuple[RunConfig, dict[str, float]]:
    """The configuration with the stage's own rates of what old classes hang on, and what results.json says of them.

    Distillation keeps what the previous model sees in the new pictures. What it does not see there nothing keeps but a
    small step.
    """
    method = config.method
    pairs = {"shared_lr_factor": method.unseen_lr_factor, "tower_lr_factor": method.unseen_tower_lr_factor}
    if not any(pairs.values()):
        return config, {}
    seen = seen_objects(item.images, item.previous, config)
    rates = {key: getattr(method, key) for key in pairs}
    rates |= {key: low + (rates[key] - low) * min(1.0, seen) for key, low in pairs.items() if low is not None}
    chosen = method.model_copy(update={**rates, "unseen_lr_factor": None, "unseen_tower_lr_factor": None})
    return config.model_copy(update={"method": chosen}), {"seen": seen, **rates}


def _with_batch(config: RunConfig, item: StageInput) -> tuple[RunConfig, dict[str, float]]:
    """The configuration with the stage's own batch, and what results.json says of it.

    What a stage learns follows its steps more than its pictures, and a task in a new domain often has few. What is
    shared learns the slower the smaller the batch (the linear scaling rule of Goyal et al., arXiv 1706.02677, section
    2.1), so that more steps do not mean more forgetting.
    """
    if config.method.min_steps is None:
        return config, {}
    train = config.later_train(item.data.images)
    rate = config.method.shared_lr_factor * train.batch / config.train.batch
    method = config.method.model_copy(update={"min_steps": None, "shared_lr_factor": rate})
    found = {"batch": train.batch, "shared_lr_factor": rate}
    return config.model_copy(update={"train": train, "method": method}), found


def _paths(item: StageInput) -> list[Path]:
    return [image.path for image in item.images]


def _meet_domain(detector: Detector, item: StageInput, config: RunConfig) -> tuple[Detector, bool]:
    """Give the grown detector the BatchNorm statistics of all domains where the method asks for it, in place.

    Returns:
        The teacher, with its share of the new domain's statistics, and whether any were estimated.
    """
    previous, method = item.previous, config.method
    if method.batch_norm != "mixture" and not method.teacher_statistics:
        return previous, False
    before, current = previous.state(), statistics_on(previous, _paths(item), config.train.image_size)
    if method.batch_norm == "mixture":
        start = detector.state()  # of parallel heads the new one has names of its own
        together = mixed(before, current, 1 / item.task)
        detector.load_state({key: together.get(key, value) for key, value in start.items()})
    if not method.teacher_statistics:
        return previous, True
    teacher = previous.clone()
    teacher.load_state({**before, **mixed(before, current, method.teacher_statistics)})
    return teacher, True


def statistics_on(detector: Detector, images: Sequence[Path], image_size: int) -> State:
    """A detector's BatchNorm statistics as they are on some images; the detector stays as it is.

    Args:
        detector: whose statistics are estimated.
        images: of one domain; at most ``LOOKED_AT`` are looked at, evenly over the sequence.
        image_size: side of the square input, pixels.
    """
    other = detector.clone()
    other.estimate_batch_norm(spread(images, LOOKED_AT), image_size)
    return {key: value for key, value in other.state().items() if is_statistic(key)}


def mixed(before: State, current: State, share: float) -> State:
    """BatchNorm statistics of two domains together, by the law of total variance.

    Args:
        before: statistics until now, by name; other tensors are not read.
        current: statistics in the new domain, by name.
        share: of the new domain, 0 to 1.
    """
    known = {key: before[key] for key in current}
    settings = merging.MergeSettings(batch_norm="mixture")
    return merging.weight_averaging(known, [known, current], weights=[1 - share, share], settings=settings).state


def merge_stage(
    detector: Detector, old_state: State, item: StageInput, config: RunConfig, fisher: State | None = None
) -> dict[str, object]:
    """Merge a freshly trained detector with its predecessor, in place.

    Shared tensors by the method's merger, BatchNorm statistics by its policy, the head by its policies.

    Args:
        detector: the detector as training left it.
        old_state: tensors of the previous model.
        item: what the stage started from.
        config: of the run.
        fisher: Fisher information of the current task, for mergers that weigh by it.

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
        options = dict(method.merge.options)
        if fisher is not None and "fishers" in merging.METHODS[method.merge.name].model_lists:
            options["fishers"] = [{key: values[key] for key in parameters} for values in (item.fisher, fisher)]
        try:
            result = merging.merge(method.merge.name, item.base, [previous, shared], **options)
        except ValueError as error:  # numbers that do not fit: a negative variance, a value beyond the type's range
            raise TrainingStopped(f"the merge failed: {error}", OTHER_MERGER) from error
        refuse_exploded(result.state, (item.base, previous, shared), parameters, OTHER_MERGER)
        merged = dict(result.state)
        alpha = dict(result.coefficients or {})
        if method.batch_norm != "merge":
            merged.update({key: shared[key] for key in split.shared if key not in split.parameters})
    else:
        merged = shared
    head = detector.merged_head(old_state, method)
    detector.load_state({**merged, **head})
    if method.batch_norm == "recalibrate":
        detector.estimate_batch_norm(_paths(item), config.train.image_size)
    name = method.merge.name if method.merge else None
    return {"method": name, "alpha": alpha, "sign_conflict_rate": conflict}


def _trained(
    detector: Detector, request: StageRequest, item: StageInput, trainings: KeptTrainings | None
) -> tuple[Detector, StageOutcome]:
    """The detector after the request's training, which may have been made before."""
    if trainings is None:
        return detector, detector.train_stage(request)

    def make(_: Path) -> Training:
        return Training(detector, detector.train_stage(request))

    training = trainings.take(_training_key(detector, request, item), f"stage {item.task}", make)
    return training.detector, training.outcome


def _training_key(detector: Detector, request: StageRequest, item: StageInput) -> str:
    """Digest of everything that decides what a later stage's training leaves."""
    directional, held = request.directional, request.consolidation
    tensors = {
        "start": detector.state(),
        "teacher": request.teacher.state(),
        "direction": directional.direction if directional else {},
        "fisher": held.fisher if held else {},
    }
    return digest_of(
        {
            **{name: weights_digest(state) for name, state in tensors.items()},
            "classes": list(detector.classes),
            "data": [content_hash(item.data.data.parent / part) for part in ("images", "labels")],
            "train": request.train.keyed(exclude={"workers"}),
            "method": request.method.of_training(),
            "epochs": request.epochs,
            "domains": [asdict(domain) for domain in (*request.past_domains, request.own_domain) if domain],
            "seed": request.seed,
            "versions": keyed_versions(),
        }
    )


def _refuse_broken(detector: Detector, config: RunConfig) -> None:
    """The last step's weights enter no loss, so that a finite loss does not speak for them."""
    refuse_not_finite(detector.state(), "what training left", f"train.lr0={config.train.lr0 / 4:g}")


def weighs_by_fisher(config: RunConfig) -> bool:
    """Whether the run's merger or losses need Fisher information of each task."""
    merger = config.method.merge
    by_merger = merger is not None and "fishers" in merging.METHODS[merger.name].model_lists
    return by_merger or config.method.ewc is not None


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


def _fisher(detector: Detector, request: StageRequest, config: RunConfig) -> State | None:
    """Of the task just trained, by the detector's own loss and scaled to norm 1 (Matena and Raffel, section 3)."""
    if not weighs_by_fisher(config):
        return None
    values = detector.squared_gradients(
        replace(request, teacher=None, directional=None, consolidation=None, past_domains=())
    )
    shared = detector.split(shared_towers=True).shared_parameters
    norm = math.sqrt(sum(values[key].double().square().sum().item() for key in shared))
    if norm == 0.0:
        raise RuntimeError("Fisher information: every gradient is zero")
    return {key: values[key] / norm for key in shared}


def _held(item: StageInput, old_state: State, config: RunConfig) -> Consolidation | None:
    if config.method.ewc is None:
        return None
    mean = sum(value.sum().item() for value in item.fisher.values()) / sum(v.numel() for v in item.fisher.values())
    return Consolidation({key: old_state[key] for key in item.fisher}, {k: v / mean for k, v in item.fisher.items()})


def _added(earlier: State | None, current: State | None) -> State | None:
    """Information of several tasks adds up."""
    if earlier is None or current is None:
        return current
    return {key: earlier[key] + value for key, value in current.items()}


def _restored_rows(detector: Detector, old_state: State, config: RunConfig) -> dict[str, Tensor]:
    kept = config.method.model_copy(update={"towers": "new"})
    return detector.merged_head(old_state, kept)


def _plain(losses: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [dict(epoch) for epoch in losses]
