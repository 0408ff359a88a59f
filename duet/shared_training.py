"""Trainings that runs share: made once and kept by what decides their numbers.

References that indices divide by: ``joint``, one model on all domains with all labels; ``individual``, one model per
slice, trained on only those classes in that domain (DuET, A6). They need the data of all tasks at once, so they are
trained before the first stage. First stages: the first task is trained alike by every method, so that methods with one
seed start from the very same model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from duet.config import MethodSettings, RunConfig
from duet.datasets.domain import Domain
from duet.datasets.images import LabelledImage
from duet.datasets.series_file import SeriesFile
from duet.datasets.training import write_training_set
from duet.detectors.base import Detector, StageOutcome, StageRequest
from duet.detectors.families import restore_detector, store_detector
from duet.documents import read_json
from duet.errors import InputError
from duet.monitor import Monitor
from duet.paths import cache_folder
from duet.results import versions
from duet.series import Slice
from duet.stage import stage_seed
from duet.state import digest_of, write_json

_PLAIN = MethodSettings(name="plain")
_KEYED_VERSIONS = ("torch", "ultralytics")
_RECORD = "training.json"


@dataclass(frozen=True)
class Training:
    """A detector trained from the pretrained weights by its own loss.

    Args:
        detector: the detector.
        outcome: its losses and the duration of its training, also when it came from the cache.
    """

    detector: Detector
    outcome: StageOutcome


@dataclass(frozen=True)
class SharedTrainer:
    """Trains or fetches the references and first stages of one run.

    Args:
        source: the series.
        domains: its domains.
        digests: content digest of each domain's training split.
        config: the run's configuration.
        start: the pretrained detector.
        start_digest: digest of its weights.
        monitor: progress.
    """

    source: SeriesFile
    domains: Mapping[str, Domain]
    digests: Mapping[str, str]
    config: RunConfig
    start: Detector
    start_digest: str
    monitor: Monitor

    def joint(self) -> Training:
        """One model on all domains with all labels of the series' classes."""
        series = self.source.series
        return self._train("joint training", series.domains, series.classes, stage_seed(self.config.seed, 0))

    def individual(self, item: Slice) -> Training:
        """A model that is trained on the slice's classes in its domain only."""
        return self._train(f"reference {item.label}", (item.domain,), item.classes, stage_seed(self.config.seed, 0))

    def alone(self, number: int) -> Training:
        """The model of one task by itself, from the pretrained weights: stage 1 of every method.

        Args:
            number: of the task, from 1.
        """
        item, tasks = self.source.series.tasks[number - 1], len(self.source.series)
        title = f"stage {number}/{tasks}: {item.domain}"
        return self._train(title, (item.domain,), item.classes, stage_seed(self.config.seed, number))

    def has_alone(self, number: int) -> bool:
        """Whether :meth:`alone` has been trained before."""
        item = self.source.series.tasks[number - 1]
        return self._made((item.domain,), item.classes, stage_seed(self.config.seed, number))

    def has_reference(self, domains: Sequence[str], classes: Sequence[str]) -> bool:
        """Whether the reference on these domains and classes has been trained before."""
        return self._made(domains, classes, stage_seed(self.config.seed, 0))

    def _made(self, domains: Sequence[str], classes: Sequence[str], seed: int) -> bool:
        return (self._folder(domains, classes, seed) / _RECORD).is_file()

    def _train(self, title: str, domains: Sequence[str], classes: Sequence[str], seed: int) -> Training:
        target = self._folder(domains, classes, seed)
        with self._only_one(target, title):
            return _kept(target) or self._trained(title, domains, classes, seed, target)

    @contextmanager
    def _only_one(self, folder: Path, title: str) -> Iterator[None]:
        """Hold the training's lock: of several runs that need it, one makes it and the others wait for it."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.monitor.begin(f"wait for another run: {title}", 1)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _trained(self, title: str, domains: Sequence[str], classes: Sequence[str], seed: int, target: Path) -> Training:
        folder = target.with_name(f".{target.name}.part")  # what a killed run left in it is replaced
        shutil.rmtree(folder, ignore_errors=True)
        images: list[LabelledImage] = [image for name in domains for image in self.domains[name].train()]
        section = self.source.section
        other = "drop"  # a slice's reference sees the whole domain and labels only its classes
        data = write_training_set(images, classes, classes, folder / "data", other, section.unlabelled_images)
        epochs = self.config.train.epochs
        self.monitor.begin(title, epochs * -(-data.images // self.config.train.batch))
        detector = self.start.with_classes(classes, seed)
        request = StageRequest(
            data=data.data,
            folder=folder / "train",
            seed=seed,
            train=self.config.train,
            method=_PLAIN,
            epochs=epochs,
            progress=self.monitor.train_step,
        )
        outcome = detector.train_stage(request)
        store_detector(detector, folder / "model.safetensors")
        shutil.rmtree(folder / "data", ignore_errors=True)
        shutil.rmtree(folder / "train" / "weights", ignore_errors=True)
        losses = [dict(epoch) for epoch in outcome.losses]
        write_json(folder / _RECORD, {"losses": losses, "seconds": outcome.seconds})
        shutil.rmtree(target, ignore_errors=True)  # a damaged one
        folder.rename(target)
        return Training(detector, outcome)

    def _folder(self, domains: Sequence[str], classes: Sequence[str], seed: int) -> Path:
        found = versions()
        key = digest_of(
            {
                "start": self.start_digest,
                "train": self.config.train.model_dump(mode="json", exclude={"workers"}),
                "data": [[name, self.digests[name]] for name in domains],
                "classes": list(classes),
                "unlabelled": self.source.section.unlabelled_images,
                "seed": seed,
                "versions": {name: found[name] for name in _KEYED_VERSIONS},
            }
        )
        return cache_folder() / "trainings" / key[:16]


def _kept(folder: Path) -> Training | None:
    """A training that was made before; None when there is none or it is damaged."""
    try:
        record = read_json(folder / _RECORD)
        outcome = StageOutcome(tuple(record["losses"]), record["seconds"])
        return Training(restore_detector(folder / "model.safetensors"), outcome)
    except (InputError, KeyError, TypeError):
        return None
