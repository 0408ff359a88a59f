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
        return self._train(title, (item.domain,), item.classes, stage_seed(self.config.seed, number), self._first)

    def has_alone(self, number: int) -> bool:
        """Whether :meth:`alone` has been trained before."""
        item = self.source.series.tasks[number - 1]
        return self._made((item.domain,), item.classes, stage_seed(self.config.seed, number), self._first)

    def has_reference(self, domains: Sequence[str], classes: Sequence[str]) -> bool:
        """Whether the reference on these domains and classes has been trained before."""
        return self._made(domains, classes, stage_seed(self.config.seed, 0))

    @property
    def _first(self) -> MethodSettings:
        """What a method adds to its first stage: methods that vary no appearance share theirs."""
        return _PLAIN.model_copy(update={"appearance": self.config.method.appearance})

    def _made(self, domains: Sequence[str], classes: Sequence[str], seed: int, method: MethodSettings = _PLAIN) -> bool:
        return self._kept.has(self._key(domains, classes, seed, method))

    def _train(
        self, title: str, domains: Sequence[str], classes: Sequence[str], seed: int, method: MethodSettings = _PLAIN
    ) -> Training:
        def make(folder: Path) -> Training:
            return self._trained(title, domains, classes, seed, method, folder)

        return self._kept.take(self._key(domains, classes, seed, method), title, make)

    def _trained(
        self,
        title: str,
        domains: Sequence[str],
        classes: Sequence[str],
        seed: int,
        method: MethodSettings,
        folder: Path,
    ) -> Training:
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
            method=method,
            epochs=epochs,
            progress=self.monitor.train_step,
        )
        return Training(detector, detector.train_stage(request))

    def _key(self, domains: Sequence[str], classes: Sequence[str], seed: int, method: MethodSettings) -> str:
        varied = {"appearance": method.appearance.model_dump()} if method.appearance else {}
        return digest_of(
            {
                **varied,
                "start": self.start_digest,
                "train": self.config.train.model_dump(mode="json", exclude={"workers"}),
                "data": [[name, self.digests[name]] for name in domains],
                "classes": list(classes),
                "unlabelled": self.source.section.unlabelled_images,
                "seed": seed,
                "versions": keyed_versions(),
            }
        )

    @property
    def _kept(self) -> KeptTrainings:
        return KeptTrainings(cache_folder() / "trainings", self.monitor)
