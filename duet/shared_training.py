"""Trainings that runs share: made once and kept by what decides their numbers.

References that indices divide by: ``joint``, one model on all domains with all labels; ``individual``, one model per
slice, trained on only those classes in that domain (DuET, A6). They need the data of all tasks at once, so they are
trained before the first stage. First stages: the first task is trained alike by every method, so that methods with one
seed start from the very same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from duet.config import MethodSettings, RunConfig
from duet.datasets.domain import Domain
from duet.datasets.images import LabelledImage
from duet.datasets.series_file import SeriesFile
from duet.datasets.training import write_training_set
from duet.detectors.base import Detector, StageRequest
from duet.kept_trainings import KeptTrainings, Training, keyed_versions
from duet.monitor import Monitor
from duet.paths import cache_folder
from duet.series import Slice
from duet.stage import stage_seed
from duet.state import digest_of

_PLAIN = MethodSettings(name="plain")  # of references: nothing added


@dataclass(frozen=True)
class _Job:
    """A training from the pretrained weights.

    Args:
        domains: whose training images are taken.
        classes: that are labelled and learned.
        seed: of the class rows and the training.
        method: what is added to a plain training.
    """

    domains: tuple[str, ...]
    classes: tuple[str, ...]
    seed: int
    method: MethodSettings = _PLAIN


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
        return self._train("joint training", self._reference(series.domains, series.classes))

    def individual(self, item: Slice) -> Training:
        """A model that is trained on the slice's classes in its domain only."""
        return self._train(f"reference {item.label}", self._reference((item.domain,), item.classes))

    def alone(self, number: int) -> Training:
        """The model of one task by itself, from the pretrained weights: stage 1 of every method.

        Args:
            number: of the task, from 1.
        """
        item, tasks = self.source.series.tasks[number - 1], len(self.source.series)
        return self._train(f"stage {number}/{tasks}: {item.domain}", self._first(number))

    def has_alone(self, number: int) -> bool:
        """Whether :meth:`alone` has been trained before."""
        return self._kept.has(self._key(self._first(number)))

    def has_reference(self, domains: Sequence[str], classes: Sequence[str]) -> bool:
        """Whether the reference on these domains and classes has been trained before."""
        return self._kept.has(self._key(self._reference(domains, classes)))

    def _reference(self, domains: Sequence[str], classes: Sequence[str]) -> _Job:
        return _Job(tuple(domains), tuple(classes), stage_seed(self.config.seed, 0))

    def _first(self, number: int) -> _Job:
        """Methods that vary no appearance share their first stage."""
        item = self.source.series.tasks[number - 1]
        method = _PLAIN.model_copy(update={"appearance": self.config.method.appearance})
        return _Job((item.domain,), item.classes, stage_seed(self.config.seed, number), method)

    def _train(self, title: str, job: _Job) -> Training:
        return self._kept.take(self._key(job), title, lambda folder: self._trained(title, job, folder))

    def _trained(self, title: str, job: _Job, folder: Path) -> Training:
        images: list[LabelledImage] = [image for name in job.domains for image in self.domains[name].train()]
        section = self.source.section
        other = "drop"  # a slice's reference sees the whole domain and labels only its classes
        data = write_training_set(images, job.classes, job.classes, folder / "data", other, section.unlabelled_images)
        self.monitor.begin(title, self.config.train.steps(data.images))
        detector = self.start.with_classes(job.classes, job.seed)
        request = StageRequest(
            data=data.data,
            folder=folder / "train",
            seed=job.seed,
            train=self.config.train,
            method=job.method,
            epochs=self.config.train.epochs,
            progress=self.monitor.train_step,
        )
        return Training(detector, detector.train_stage(request))

    def _key(self, job: _Job) -> str:
        varied = {"appearance": job.method.appearance.model_dump()} if job.method.appearance else {}
        return digest_of(
            {
                **varied,
                "start": self.start_digest,
                "train": self.config.train.keyed(exclude={"workers"}),
                "data": [[name, self.digests[name]] for name in job.domains],
                "classes": list(job.classes),
                "unlabelled": self.source.section.unlabelled_images,
                "seed": job.seed,
                "versions": keyed_versions(),
            }
        )

    @property
    def _kept(self) -> KeptTrainings:
        return KeptTrainings(cache_folder() / "trainings", self.monitor)
