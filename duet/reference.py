"""Reference detectors that indices divide by, trained once and kept by what decides their numbers.

``joint``: one model on all domains with all labels. ``individual``: one model per slice, trained on only those classes
in that domain (DuET, A6). They need the data of all tasks at once, so they are trained before the first stage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duet.config import MethodSettings, RunConfig
from duet.datasets.domain import Domain
from duet.datasets.images import LabelledImage
from duet.datasets.series_file import SeriesFile
from duet.datasets.training import write_training_set
from duet.detectors.base import Detector, StageRequest
from duet.detectors.families import restore_detector, store_detector
from duet.documents import read_json
from duet.errors import InputError
from duet.evaluation.run import DomainScores, score_domain, score_slice
from duet.monitor import Monitor
from duet.paths import cache_folder
from duet.results import grid_cells, versions
from duet.series import Role, Slice
from duet.stage import stage_seed
from duet.state import digest_of, write_json

_PLAIN = MethodSettings(name="plain")
_KEYED_VERSIONS = ("torch", "ultralytics")


@dataclass(frozen=True)
class Reference:
    """A trained reference detector.

    Args:
        detector: the detector.
        losses: per epoch, loss name to value.
        seconds: duration of its training, also when it came from the cache.
    """

    detector: Detector
    losses: list[dict[str, float]]
    seconds: float


@dataclass(frozen=True)
class ReferenceTrainer:
    """Trains or fetches the references of one run.

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

    def joint(self) -> Reference:
        """One model on all domains with all labels of the series' classes."""
        series = self.source.series
        return self._train("joint training", series.domains, series.classes, stage_seed(self.config.seed, 0))

    def individual(self, item: Slice) -> Reference:
        """A model that is trained on the slice's classes in its domain only."""
        return self._train(f"reference {item.label}", (item.domain,), item.classes, stage_seed(self.config.seed, 0))

    def missing(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Domains and classes of the references that this run needs and that were not trained before."""
        series, seed = self.source.series, stage_seed(self.config.seed, 0)
        wanted = [(series.domains, series.classes)]
        if self.config.evaluation.reference == "individual":
            wanted += [((item.domain,), item.classes) for item in divided_by(self.source)]
        return [pair for pair in wanted if not (self._folder(*pair, seed) / "reference.json").is_file()]

    def _train(self, title: str, domains: Sequence[str], classes: Sequence[str], seed: int) -> Reference:
        folder = self._folder(domains, classes, seed)
        kept = _kept(folder)
        if kept is not None:
            return kept
        target, folder = folder, folder.with_name(f".{folder.name}.{os.getpid()}.part")
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
        losses = [dict(epoch) for epoch in outcome.losses]
        store_detector(detector, folder / "model.safetensors")
        shutil.rmtree(folder / "data", ignore_errors=True)
        shutil.rmtree(folder / "train" / "weights", ignore_errors=True)
        write_json(folder / "reference.json", {"losses": losses, "seconds": outcome.seconds})
        shutil.rmtree(target, ignore_errors=True)  # a damaged one; another run's equal one does no harm either
        folder.rename(target)
        return Reference(detector, losses, outcome.seconds)

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
        return cache_folder() / "references" / key[:16]


def _kept(folder: Path) -> Reference | None:
    """A reference that was trained before; None when there is none or it is damaged."""
    try:
        record = read_json(folder / "reference.json")
        return Reference(restore_detector(folder / "model.safetensors"), record["losses"], record["seconds"])
    except (InputError, KeyError, TypeError):
        return None


def score_references(
    trainer: ReferenceTrainer, tests: Mapping[str, Sequence[LabelledImage]]
) -> tuple[dict[str, Any], float]:
    """The ``reference`` entry of results.json and the seconds that its training took.

    Args:
        trainer: of this run.
        tests: test images by domain.
    """
    series, settings = trainer.source.series, trainer.config.evaluation
    if settings.reference == "none":
        return {"kind": "none", "slices": [], "grid": []}, 0.0
    joint = trainer.joint()
    seconds = joint.seconds
    scores = {name: _score(trainer, joint.detector, name, tests) for name in series.domains}
    entries = []
    for item in divided_by(trainer.source):
        if settings.reference == "joint":
            entries.append(score_slice(scores, item))
            continue
        single = trainer.individual(item)
        seconds += single.seconds
        own = {item.domain: _score(trainer, single.detector, item.domain, tests)}
        entries.append(score_slice(own, item))
    return {"kind": settings.reference, "slices": entries, "grid": grid_cells(series, scores)}, seconds


def divided_by(source: SeriesFile) -> list[Slice]:
    """Every slice that an index divides by, once: the unseen ones (GI) and the new ones from task 2 on (NI)."""
    series = source.series
    found: list[Slice] = []
    for number in range(2, len(series) + 1):
        for item in series.slices(number):
            if item.role in (Role.UNSEEN, Role.NEW) and item.slice not in found:
                found.append(item.slice)
    return found


def _score(
    trainer: ReferenceTrainer, detector: Detector, domain: str, tests: Mapping[str, Sequence[LabelledImage]]
) -> DomainScores:
    config, classes = trainer.config, trainer.source.series.classes
    trainer.monitor.begin(f"evaluate the reference in {domain}", len(tests[domain]))
    return score_domain(
        detector,
        domain,
        tests[domain],
        classes,
        config.train.image_size,
        config.evaluation,
        lambda done, total: trainer.monitor.advance(done),
    )
