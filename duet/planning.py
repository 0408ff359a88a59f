"""Before a run trains: whether the data of every task is usable, and how many steps there are to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from duet.datasets.domain import Domain
from duet.datasets.faults import no_box_of, not_of_the_task
from duet.datasets.series_file import SeriesFile
from duet.errors import InputError
from duet.reference import missing_references
from duet.shared_training import SharedTrainer
from duet.stage_data import exemplars
from duet.state import RunState


def refuse_bad_training_data(source: SeriesFile, domains: Mapping[str, Domain]) -> None:
    """Read every training split once, so that a fault in the last task is found before the first is trained.

    Raises:
        InputError: for a task without a box of its classes, or a label of another class where these are refused.
    """
    for task in source.series.tasks:
        images = domains[task.domain].train()
        wanted = frozenset(task.classes)
        if not any(label in wanted for image in images for label in image.labels):
            raise InputError(f"domain '{task.domain}': {no_box_of(task.classes)}")
        if source.section.other_labels == "error":
            for image in images:
                for label, line in zip(image.labels, image.lines):
                    if label not in wanted:
                        raise InputError(f"{line}: {not_of_the_task(label, task.classes)}")


def planned_steps(trainer: SharedTrainer, state: RunState) -> int:
    """Training steps that are still to do, references included.

    Args:
        trainer: of the run.
        state: the record of its folder.
    """
    config, series = trainer.config, trainer.source.series
    method = config.method
    steps = 0
    for number in range(state.finished_stages + 1, len(series) + 1):
        task = series.tasks[number - 1]
        count = _trained_images(trainer, task.domain, task.classes)
        alone = number == 1 or method.start == "pretrained"
        if method.joint or (alone and trainer.has_alone(number)):
            continue
        if alone:
            steps += config.train.steps(count)
        else:
            count += _kept_images(trainer, number)
            train = config.later_train(count)
            steps += train.steps(count) + train.steps(count, method.calibration_epochs)
    wanted = method.joint or config.evaluation.reference != "none"
    if wanted and not (state.folder / "reference.json").exists():
        for domains, classes in missing_references(trainer):
            count = sum(_trained_images(trainer, name, classes) for name in domains)
            steps += config.train.steps(count)
    return steps


def _kept_images(trainer: SharedTrainer, number: int) -> int:
    settings, tasks = trainer.config.method.exemplars, trainer.source.series.tasks[: number - 1]
    if settings is None:
        return 0
    images = {task.domain: trainer.domains[task.domain].train() for task in tasks}
    return len(exemplars(images, [(task.domain, task.classes) for task in tasks], settings, trainer.config.seed))


def _trained_images(trainer: SharedTrainer, domain: str, classes: Sequence[str]) -> int:
    images, wanted = trainer.domains[domain].train(), frozenset(classes)
    if trainer.source.section.unlabelled_images == "keep":
        return len(images)
    return sum(not wanted.isdisjoint(image.labels) for image in images)
