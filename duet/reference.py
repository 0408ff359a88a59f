"""The references that indices divide by, scored on every slice that needs one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duet.datasets.images import LabelledImage
from duet.datasets.series_file import SeriesFile
from duet.detectors.base import Detections, Detector
from duet.evaluation.run import DomainScores, score_domain, score_slice
from duet.results import grid_cells
from duet.series import Role, Slice
from duet.shared_training import SharedTrainer


@dataclass(frozen=True)
class ReferenceScores:
    """What the references of a run reach.

    Args:
        entry: the ``reference`` of results.json.
        seconds: duration of their training, also when they were trained before.
        detections: by ``joint/DOMAIN`` or ``individual/SLICE``: one entry per test image of the domain.
    """

    entry: dict[str, Any]
    seconds: float
    detections: Mapping[str, Sequence[Detections]]


def missing_references(trainer: SharedTrainer) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Domains and classes of the references that a run needs and that were not trained before."""
    series = trainer.source.series
    wanted = [(series.domains, series.classes)]
    if trainer.config.evaluation.reference == "individual":
        wanted += [((item.domain,), item.classes) for item in divided_by(trainer.source)]
    return [pair for pair in wanted if not trainer.has_reference(*pair)]


def score_references(trainer: SharedTrainer, tests: Mapping[str, Sequence[LabelledImage]]) -> ReferenceScores:
    """Train the references, or fetch them, and score them.

    Args:
        trainer: of this run.
        tests: test images by domain.
    """
    series, settings = trainer.source.series, trainer.config.evaluation
    if settings.reference == "none":
        return ReferenceScores({"kind": "none", "slices": [], "grid": []}, 0.0, {})
    joint = trainer.joint()
    seconds = joint.outcome.seconds
    scores = {name: _score(trainer, joint.detector, name, tests) for name in series.domains}
    detections = {f"joint/{name}": _in_order(scores[name], tests) for name in series.domains}
    entries = []
    for item in divided_by(trainer.source):
        if settings.reference == "joint":
            entries.append(score_slice(scores, item))
            continue
        single = trainer.individual(item)
        seconds += single.outcome.seconds
        own = _score(trainer, single.detector, item.domain, tests)
        detections[f"individual/{item.label}"] = _in_order(own, tests)
        entries.append(score_slice({item.domain: own}, item))
    entry = {"kind": settings.reference, "slices": entries, "grid": grid_cells(series, scores)}
    return ReferenceScores(entry, seconds, detections)


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
    trainer: SharedTrainer, detector: Detector, domain: str, tests: Mapping[str, Sequence[LabelledImage]]
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


def _in_order(scores: DomainScores, tests: Mapping[str, Sequence[LabelledImage]]) -> list[Detections]:
    return [scores.detections[image.path] for image in tests[scores.domain]]
