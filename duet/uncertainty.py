"""Confidence intervals of a finished run, from the detections that its folder keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from duet.config import EvaluationSettings
from duet.datasets.images import LabelledImage
from duet.errors import InputError
from duet.evaluation.difference import REPLICATES_FILE
from duet.evaluation.intervals import run_replicates, steps, store_replicates
from duet.evaluation.replicates import RunDetections
from duet.evaluation.stored import restore_detections
from duet.monitor import Monitor
from duet.state import RunState

REFERENCE_FILE = "reference-detections.safetensors"


def lacks_intervals(results: Mapping[str, Any], folder: Path, resamples: int) -> bool:
    """Whether intervals are asked for and the run does not have those.

    Args:
        results: the content of results.json.
        folder: the run folder.
        resamples: how many are asked for; none are with 0.
    """
    if resamples == 0:
        return False
    present = (results.get("intervals") or {}).get("resamples")
    return present != resamples or not (folder / REPLICATES_FILE).is_file()


def write_intervals(
    results: Mapping[str, Any],
    state: RunState,
    images: Mapping[str, Sequence[LabelledImage]],
    settings: EvaluationSettings,
    monitor: Monitor,
) -> dict[str, Any]:
    """Write the replicates of a finished run into its folder; its results with ``intervals``, which are not written.

    Args:
        results: the content of results.json.
        state: the record of the run folder.
        images: test images by domain.
        settings: the run's; ``bootstrap`` is at least 1.
        monitor: progress.

    Raises:
        InputError: when detections are missing or damaged, or are not those that the results were made of.
    """
    found = _detections(results, state)
    done, total = iter(range(1, steps(found) + 1)), steps(found)
    monitor.begin("confidence intervals", total)
    try:
        replicates = run_replicates(
            results,
            found,
            images,
            settings.bootstrap,
            settings.drop_images_without_class,
            lambda: monitor.advance(next(done, total)),
        )
    except ValueError as error:
        raise InputError(f"{state.folder}: {error}") from error
    store_replicates(replicates, state.folder / REPLICATES_FILE)
    return {**results, "intervals": replicates.intervals}


def _detections(results: Mapping[str, Any], state: RunState) -> RunDetections:
    stages = []
    for number in range(1, state.finished_stages + 1):
        try:
            path = state.stage_file(number, "detections")
        except KeyError:
            raise InputError(f"{state.folder}: its stage {number} was made before detections were kept") from None
        stages.append(restore_detections(path))
    reference = state.folder / REFERENCE_FILE
    if (results.get("reference") or {}).get("kind", "none") == "none":
        return RunDetections(stages, {})
    if not reference.is_file():
        raise InputError(f"{reference}: missing; without reference.json and results.json the next start writes all")
    return RunDetections(stages, restore_detections(reference))
