"""The test pictures on which the methods of a comparison differ most, from the detections that the runs keep."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from duet.datasets.domain import open_domains
from duet.datasets.images import LabelledImage
from duet.datasets.pictures import read_bgr
from duet.datasets.series_file import find_series
from duet.detectors.base import Detections
from duet.documents import read_yaml
from duet.errors import InputError
from duet.evaluation.stored import restore_detections
from duet.report.compared import ComparedRun, ComparedScene
from duet.report.drawing import DrawnBox, judge
from duet.report.scenes import true_boxes

SHOWN_SCORE = 0.25
_logger = logging.getLogger(__name__)


def differing_scenes(runs: Sequence[ComparedRun], per_domain: int = 1) -> list[ComparedScene]:
    """Per series, detector and domain, the test pictures on which the methods' errors spread most.

    A picture's errors are its missed and false objects at score 0.25 and IoU 0.5, over all classes of the series; the
    spread is the standard deviation over the methods, the joint model left out. Everything is taken from one seed, the
    one that most methods have finished. Where the pictures cannot be had (the data changed or is gone, detections are
    damaged), the reason is logged as a warning and the block has none; runs that kept no detections are left out.

    Args:
        runs: the cells of the grid, whatever their status.
        per_domain: pictures per domain.
    """
    blocks: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in runs:
        blocks.setdefault((run.series, run.detector), []).append(run)
    scenes = []
    for (series, detector), members in blocks.items():
        try:
            scenes += _block_scenes(members, per_domain)
        except InputError as error:
            _logger.warning("%s · %s: no example pictures: %s", series, detector, error)
    return scenes


def _block_scenes(runs: Sequence[ComparedRun], per_domain: int) -> list[ComparedScene]:
    chosen = _one_seed([run for run in runs if run.status == "finished" and _detections_file(run).is_file()])
    if len(chosen) < 2:
        return []  # nothing to differ from
    found = {run.label: restore_detections(_detections_file(run)) for run in chosen}
    rivals = [run.label for run in chosen if run.kind != "joint"]
    classes = chosen[0].results["series"]["classes"]
    scenes = []
    for domain, images in _tests(chosen[0]).items():
        parts = {label: found[label][domain] for label in found if domain in found[label]}
        _refuse_other_images(parts, images, chosen[0], domain)
        spreads = _spreads({label: parts[label] for label in rivals if label in parts}, images, classes)
        best = sorted(range(len(images)), key=lambda place: -spreads[place])[:per_domain]
        for place in (place for place in best if spreads[place] > 0):
            scenes.append(_scene(chosen[0], domain, images[place], {label: parts[label][place] for label in parts}))
    return scenes


def _one_seed(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    seeds = sorted({run.seed for run in runs})
    best = max(seeds, key=lambda seed: sum(run.seed == seed for run in runs), default=None)
    return [run for run in runs if run.seed == best]


def _detections_file(run: ComparedRun) -> Path:
    last = "joint" if run.kind == "joint" else str(run.results["stages"][-1]["task"])
    return run.folder / "stages" / last / "detections.safetensors"


def _tests(run: ComparedRun) -> dict[str, tuple[LabelledImage, ...]]:
    config = read_yaml(run.folder / "config.yaml")
    root = config.get("root")
    source = find_series(config["series"], Path(root) if root else None)
    domains = open_domains(source)
    return {name: domains[name].test() for name in source.series.domains}


def _refuse_other_images(
    parts: Mapping[str, Sequence[Detections]], images: Sequence[LabelledImage], run: ComparedRun, domain: str
) -> None:
    for label, detections in parts.items():
        if len(detections) != len(images):
            raise InputError(
                f"domain '{domain}': {label} kept detections of {len(detections)} test images, "
                f"but {run.series} has {len(images)} now"
            )


def _spreads(
    parts: Mapping[str, Sequence[Detections]], images: Sequence[LabelledImage], classes: Sequence[str]
) -> list[float]:
    """Standard deviation over methods of each picture's errors; 0 where nothing is to be found."""
    spreads = []
    for place, image in enumerate(images):
        truth = true_boxes(image)
        errors = [_errors(list(_drawn(item[place])), truth, classes) for item in parts.values()] if truth else []
        spreads.append(statistics.pstdev(errors) if errors else 0.0)
    return spreads


def _errors(found: Sequence[DrawnBox], truth: Sequence[DrawnBox], classes: Sequence[str]) -> int:
    verdict = judge(found, truth, classes)
    return len(verdict.false) + len(verdict.missed)


def _scene(run: ComparedRun, domain: str, image: LabelledImage, found: Mapping[str, Detections]) -> ComparedScene:
    return ComparedScene(
        series=run.series,
        detector=run.detector,
        domain=domain,
        image_rgb=read_bgr(image.path)[..., ::-1],
        ground_truth=true_boxes(image),
        found={label: list(_drawn(item)) for label, item in found.items()},
        seed=run.seed,
    )


def _drawn(every: Detections) -> Iterator[DrawnBox]:
    found = every.one_per_box()
    for box, score, label in zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels):
        if score >= SHOWN_SCORE:
            yield DrawnBox(tuple(box), label, score)
