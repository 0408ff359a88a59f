"""What a comparison is made of: the cells of its grid, and pictures as several methods see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from duet.report.drawing import DrawnBox

Status = Literal["finished", "failed", "pending"]
Kind = Literal["method", "exemplars", "committee", "joint"]


@dataclass(frozen=True)
class ComparedRun:
    """One cell of a grid: a run, finished or not.

    Args:
        series: name of the series.
        detector: name of the detector.
        label: the method's name in the grid, such as ``duet+ties``.
        seed: the run's seed.
        status: whether there are results.
        folder: the run folder; read for ``bootstrap.safetensors`` only.
        results: the content of results.json; needed when finished.
        error: why it failed, one sentence.
        log_tail: the last lines of a failed run's log.
        kind: ``method``, or why the method is no rival of the others: it keeps old images (``exemplars``), is one
            detector per task (``committee``), or saw everything at once (``joint``).

    Raises:
        ValueError: when the status is unknown, or a finished run has no results.
    """

    series: str
    detector: str
    label: str
    seed: int
    status: Status
    folder: Path
    results: Mapping[str, Any] | None = None
    error: str = ""
    log_tail: tuple[str, ...] = ()
    kind: Kind = "method"

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"{self.name}: status '{self.status}' is not one of {', '.join(get_args(Status))}")
        if self.status == "finished" and not self.results:
            raise ValueError(f"{self.name}: finished, but without results")

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.series} · {self.detector} · {self.label} · seed {self.seed}"


@dataclass(frozen=True)
class ComparedScene:
    """One test picture as several methods see it.

    Args:
        series: name of the series.
        detector: name of the detector.
        domain: name of the domain.
        image_rgb: ``(H, W, 3)`` uint8.
        ground_truth: the true boxes, of all classes.
        found: detections of each method by its label, above the score at which they are shown.
        seed: the seed of the runs that made them.

    Raises:
        ValueError: when the image has another shape or type.
    """

    series: str
    detector: str
    domain: str
    image_rgb: np.ndarray
    ground_truth: Sequence[DrawnBox]
    found: Mapping[str, Sequence[DrawnBox]]
    seed: int

    def __post_init__(self) -> None:
        image = self.image_rgb
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"scene of '{self.domain}': expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
