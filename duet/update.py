"""One more task onto a deployed detector, from its artefact alone: no image of an earlier task is needed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from duet.artefact import Artefact, Record, Start, TaskRecord, open_artefact, write_artefact
from duet.config import EvaluationSettings, MethodSettings, RunConfig, TrainSettings
from duet.datasets.dataset_folder import DatasetFolder
from duet.datasets.images import LabelledImage
from duet.datasets.index import read_source
from duet.datasets.training import colour_statistics, write_training_set
from duet.detectors.base import Detector, refuse_head
from duet.detectors.families import load_pretrained
from duet.disk import disk_error, remove_leftovers
from duet.errors import InputError, TrainingStopped
from duet.monitor import Monitor
from duet.results import versions
from duet.stage import StageInput, StageResult, later_stage, weighs_by_fisher
from duet.stage_data import label_by_teacher, own_labels
from duet.state import write_json
from duet.update_scores import indices_of, refuse_unscorable, scores_before_and_after
from duet.way_on import way_on_after_update
from duet.weights import weights_digest

TRAIN_SPLITS = ("trainval", "train", "all")
TEST_SPLITS = ("test", "val", "all")


@dataclass(frozen=True)
class Update:
    """What is to be learned.

    Args:
        detector: a run folder, ``detector.safetensors``, ``detector.pt``, any plain checkpoint, or a name of weights.
        data: the new domain's data; its train split is learned from.
        domain: what the new domain is called.
        classes: the new classes, each once; the labels of others are left out.
        out: folder of the result; must not exist.
        validation: data sets by name on which the detector is scored before and after; their test splits count.
        unlabelled_images: whether pictures without a box of the new classes are trained on, as background.
        method: the method; None takes the artefact's own.
        train: the training settings; None takes the artefact's own.
        evaluation: thresholds.
        seed: of a detector that has no record.
        trust: open a checkpoint that could run code.
        needed: indices that the validation sets must allow: ``kept``, ``new``, ``overall``.

    Raises:
        InputError: for no class, one named twice, or a domain that is no name.
    """

    detector: Path
    data: DatasetFolder
    domain: str
    classes: tuple[str, ...]
    out: Path
    validation: Mapping[str, DatasetFolder] = field(default_factory=dict)
    unlabelled_images: Literal["keep", "drop"] = "drop"
    method: MethodSettings | None = None
    train: TrainSettings | None = None
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    seed: int = 0
    trust: bool = False
    needed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("detector", "out"):  # from Python they may come as text
            object.__setattr__(self, name, Path(getattr(self, name)))
        if isinstance(self.classes, str) or not self.classes or not all(self.classes):
            raise InputError(f"classes are {self.classes!r}: expected the names of the new classes")
        object.__setattr__(self, "classes", tuple(self.classes))
        twice = next((name for name in self.classes if self.classes.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"class '{twice}' is named twice")
        if not self.domain.strip() or not self.domain.isprintable() or set("/\\") & set(self.domain):
            raise InputError(f"domain is {self.domain!r}: expected a name, without slashes")


@dataclass(frozen=True)
class Origin:
    """What a detector's updates are measured from.

    Args:
        state: θ_0.
        before: θ_s of the model before the last task; θ_0 where that was the first.
        name: the pretrained weights, or the checkpoint that stands in for them.
        is_checkpoint: whether a deployed checkpoint stands in for θ_0.
    """

    state: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    name: str
    is_checkpoint: bool


def update_detector(update: Update, monitor: Monitor | None = None) -> dict[str, Any]:
    """Teach a deployed detector one more task (DuET, Algorithm 1, one turn of the loop) and write a new artefact.

    The folder ``out`` appears whole or not at all: the artefact's four files and ``update.json``, which is also
    returned: ``scores`` before and after on every validation set, ``indices`` made of them, and where θ_0 came from.

    Raises:
        InputError: when the detector, its data or the settings are not usable.
        RuntimeError: when training fails.
    """
    monitor = monitor or Monitor()
    if update.out.exists():
        raise InputError(f"{update.out}: there is something already; choose another --out")
    artefact = open_artefact(update.detector, update.trust)
    record = artefact.record or _guessed_record(artefact.detector, update)
    _refuse_known(update, record)
    config = _config(update, record)
    refuse_head(artefact.detector, config.method.head)
    origin = _origin(artefact, record, update, config)
    images, sets = _train_images(update, monitor), _validation(update, monitor)
    refuse_unscorable(update.needed, record.classes, update.classes, sets)
    remove_leftovers(update.out.parent, update.out.name)
    folder = update.out.with_name(f".{update.out.name}.{os.getpid()}.part")
    try:
        item = _stage_input(update, artefact, record, origin, config, images, folder, monitor)
        steps = config.later_train(item.data.images).steps(item.data.images)
        monitor.begin(f"learn {', '.join(update.classes)} in {update.domain}", steps)
        result = later_stage(item, _without_direction(config, origin, artefact.detector.state()), monitor.train_step)
        scores = scores_before_and_after(artefact.detector, result.detector, sets, config, monitor)
        document = _document(update, origin, result, scores)
        _write(folder, record, item, origin, result, config, document)
        folder.rename(update.out)
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(folder)
        if isinstance(error, TrainingStopped):
            raise TrainingStopped(way_on_after_update(update.detector, error), error.option) from error
        explained = disk_error(error, update.out)
        if explained is not None:
            raise explained from error
        raise
    return document


def default_train(detector: Detector) -> TrainSettings:
    """How a detector learns that has no record: the defaults, at the input size it was trained with."""
    size = detector.image_size
    return TrainSettings(image_size=-(-size // 32) * 32) if size else TrainSettings()


def _guessed_record(detector: Detector, update: Update) -> Record:
    """Of a plain checkpoint: one task with all its classes, in a domain that nobody named."""
    layout = detector.describe().architecture.get("yaml")
    name = Path(str(layout.get("yaml_file", ""))).stem if isinstance(layout, Mapping) else ""
    return Record(
        family=detector.describe().family,
        classes=detector.classes,
        image_size=detector.image_size,
        tasks=(TaskRecord(domain="unknown", classes=detector.classes),),
        start=Start(name=name, digest=""),
        seed=update.seed,
        method=update.method or _default_method(),
        train=update.train or default_train(detector),
        versions=versions(),
    )


def _default_method() -> MethodSettings:
    from duet.methods import method_settings

    return method_settings("duet")


def _refuse_known(update: Update, record: Record) -> None:
    known = [name for name in update.classes if name in record.classes]
    if known:
        raise InputError(f"{update.detector}: knows class '{known[0]}' already")
    if update.domain in [task.domain for task in record.tasks]:
        raise InputError(f"{update.detector}: has learned in a domain '{update.domain}' already; choose another name")
    for name in update.classes:
        if name not in update.data.names:
            raise InputError(f"{update.data.path}: no class '{name}'; it has {', '.join(update.data.names)}")


def _config(update: Update, record: Record) -> RunConfig:
    method = update.method or record.method
    config = RunConfig(
        series="update",
        detector=record.start.name or str(update.detector),
        method=method,
        seed=record.seed,
        train=(update.train or record.train).in_one_process(),
        evaluation=update.evaluation,
    )
    if method.joint or method.exemplars is not None:
        raise InputError(
            f"method '{method.name}' needs pictures of earlier tasks; an update has those of the new one only"
        )
    if method.start == "pretrained":
        raise InputError(f"method '{method.name}' trains each task anew; an update goes on from the deployed detector")
    if weighs_by_fisher(config):
        raise InputError("merger 'fisher' needs the Fisher information of earlier tasks, which no artefact holds")
    return config


def _origin(artefact: Artefact, record: Record, update: Update, config: RunConfig) -> Origin:
    shared = artefact.detector.split(config.method.towers == "shared").shared
    state = artefact.detector.state()
    start = artefact.base or _start_state(record, artefact.record is not None)
    if start and all(key in start and start[key].shape == state[key].shape for key in shared):
        before = artefact.before or start
        return Origin(start, {key: before[key] for key in shared}, record.start.name, bool(artefact.base))
    if artefact.record is not None:
        raise InputError(
            f"{update.detector}: its updates are measured from the weights '{record.start.name}', which are not here "
            "with the same content; `duet weights` says where they are looked for"
        )
    return Origin(state, {key: state[key] for key in shared}, str(update.detector), True)


def _start_state(record: Record, exact: bool) -> Mapping[str, Tensor] | None:
    """θ_0 by its name; None when it cannot be had, or is another one than the record's."""
    if not record.start.name:
        return None
    try:
        state = load_pretrained(record.start.name).state()
    except InputError:
        if exact:
            raise
        return None
    return None if exact and weights_digest(state) != record.start.digest else state


def _without_direction(config: RunConfig, origin: Origin, before: Mapping[str, Tensor]) -> RunConfig:
    """Where the checkpoint stands in for θ_0 there was no last update, and so nothing for the loss to hold on to."""
    if any(not torch.equal(origin.before[key], before[key]) for key in origin.before):
        return config
    return config.model_copy(update={"method": config.method.model_copy(update={"directional_consistency": None})})


def _train_images(update: Update, monitor: Monitor) -> list[LabelledImage]:
    source = _split(update.data, TRAIN_SPLITS)
    monitor.begin(f"read {update.data.path}", 1)
    return [image.chosen(~image.ignored) for image in read_source(source)]


def _validation(update: Update, monitor: Monitor) -> dict[str, tuple[LabelledImage, ...]]:
    sets = {}
    for name, dataset in update.validation.items():
        monitor.begin(f"read {dataset.path}", 1)
        sets[name] = read_source(_split(dataset, TEST_SPLITS))
        if not sets[name]:
            raise InputError(f"{dataset.path}: no picture to score on")
    return sets


def _split(dataset: DatasetFolder, wanted: Sequence[str]):
    for name in wanted:
        if name in dataset.splits:
            return dataset.splits[name]
    raise InputError(f"{dataset.path}: has none of the splits {', '.join(wanted)}, only {', '.join(dataset.splits)}")


def _stage_input(
    update: Update,
    artefact: Artefact,
    record: Record,
    origin: Origin,
    config: RunConfig,
    images: Sequence[LabelledImage],
    folder: Path,
    monitor: Monitor,
) -> StageInput:
    classes = (*record.classes, *update.classes)
    trained, labelled = images, update.classes
    own = own_labels(images, update.classes, update.unlabelled_images)
    if config.method.pseudo_labels is not None:
        trained, labelled = label_by_teacher(own, classes, artefact.detector, config, folder, monitor), classes
    data = write_training_set(trained, labelled, classes, folder / "data", "drop", update.unlabelled_images)
    shared = artefact.detector.split(config.method.towers == "shared").shared
    return StageInput(
        task=len(record.tasks) + 1,
        classes=update.classes,
        data=data,
        images=own,
        folder=folder / "train",
        statistics=colour_statistics(own),
        past=tuple(task.statistics for task in record.tasks if task.statistics is not None),
        base={key: origin.state[key] for key in shared},
        previous=artefact.detector,
        before_previous=origin.before,
    )


def _document(update: Update, origin: Origin, result: StageResult, scores: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "domain": update.domain,
        "classes": list(update.classes),
        "measured_from": {"name": origin.name, "is_the_checkpoint_itself": origin.is_checkpoint},
        "scores": scores,
        "indices": indices_of(scores),
        "merge": result.merge,
        "losses": result.losses,
        "seconds": result.seconds,
    }


def _write(
    folder: Path,
    record: Record,
    item: StageInput,
    origin: Origin,
    result: StageResult,
    config: RunConfig,
    document: dict[str, Any],
) -> None:
    for part in ("data", "train"):
        shutil.rmtree(folder / part, ignore_errors=True)
    task = TaskRecord(
        domain=document["domain"],
        classes=item.classes,
        images=item.data.images,
        boxes=item.data.boxes,
        mean=item.statistics.mean,
        std=item.statistics.std,
    )
    scores = [
        {
            "domain": row["validation"],
            "classes": row["classes"],
            "map50": row["after"],
            "map50_95": row["after_50_95"],
            "images": row["images"],
            "boxes": row["boxes"],
        }
        for row in document["scores"]
    ]
    changes = {
        "classes": result.detector.classes,
        "image_size": result.detector.image_size,
        "tasks": (*record.tasks, task),
        "method": config.method,
        "train": config.train,
        "versions": versions(),
        "scores": scores,
    }
    if not record.start.digest:
        changes["start"] = Start(name=origin.name, digest=weights_digest(origin.state))
    old = item.previous.state()
    before = {key: old[key] for key in item.base}
    base = item.base if origin.is_checkpoint else {}
    write_artefact(folder, Artefact(result.detector, record.model_copy(update=changes), before, base))
    write_json(folder / "update.json", document)
